"""Everything that a device runs at cuts, loaded and tested together with the blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from runtime_edge.inference.cut_assets.bottleneck import LoadedBottleneck
from runtime_edge.inference.cut_assets.early_exit import LoadedExit
from runtime_edge.inference.prefix import Prefix


@dataclass
class CutAssets:
    """Bottlenecks and exits by cut, each loaded when first asked for."""

    prefix: Prefix
    bottlenecks: dict[str, LoadedBottleneck] = field(default_factory=dict)
    exits: dict[str, LoadedExit] = field(default_factory=dict)

    def bottleneck(self, cut: str) -> LoadedBottleneck:
        """The bottleneck of a cut that has one. Raises BundleError or BackendError."""
        if cut not in self.bottlenecks:
            info = self.prefix.bundle.manifest.bottleneck(cut)
            assert info is not None, "the splitter chooses widths that there are"
            self.bottlenecks[cut] = LoadedBottleneck(self.prefix, info)
        return self.bottlenecks[cut]

    def exit(self, cut: str) -> LoadedExit:
        """The exit of a cut that has one. Raises BundleError or BackendError."""
        if cut not in self.exits:
            info = self.prefix.bundle.manifest.exit(cut)
            assert info is not None, "the splitter chooses exits that there are"
            self.exits[cut] = LoadedExit(self.prefix, info)
        return self.exits[cut]

    def load_all(self) -> None:
        """Load those after blocks that are here: a device fetches no others. Raises BundleError or BackendError."""
        info, (there, _) = self.prefix.bundle.manifest.info, self.prefix.blocks_there
        for cut in [cut.name for cut in info.cuts[: there + 1]]:
            if self.prefix.bundle.manifest.bottleneck(cut) is not None:
                self.bottleneck(cut)
            if self.prefix.bundle.manifest.exit(cut) is not None:
                self.exit(cut)

    def self_test(self) -> float:
        """Self-test every block, and the bottlenecks and exits loaded after them.

        Returns the largest error of the embedding. Raises SelfTestError, BundleError or BackendError.
        """
        error, variant = self.prefix.self_test(), self.prefix.variant
        if self.prefix.adaptation is not None:  # what they should give is known only for the compiled blocks
            return error
        for bottleneck in self.bottlenecks.values():
            bottleneck.self_test(variant)
        for early in self.exits.values():
            early.self_test(variant)
        return error


def self_test(prefix: Prefix) -> float:
    """Load and self-test all that a device runs: every block, with the bottlenecks and exits after them.

    Returns the largest error of the embedding. Raises SelfTestError, BundleError or BackendError.
    """
    assets = CutAssets(prefix)
    assets.load_all()
    return assets.self_test()
