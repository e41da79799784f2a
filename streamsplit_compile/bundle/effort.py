"""Estimates what a compile will cost on this machine, before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streamsplit_compile.cost.cost_model import BlockWork

LONG_SECONDS = 60.0
MUCH_BYTES = 2e9
_WEIGHT_COPIES = 10
"""Of the weights at once, at most: the encoder, its graph, files being written and blocks that are loaded."""
_LIBRARIES_BYTES = 5e8
_ENCODINGS = 3
"""In which each cut is proved."""


@dataclass(frozen=True)
class Effort:
    """A guess, good to a factor of two or three."""

    seconds: float
    """Running the encoder alone, which is what takes long where it takes long."""
    peak_bytes: float

    @property
    def notice(self) -> str | None:
        """One line when it is worth a warning."""
        if self.seconds < LONG_SECONDS and self.peak_bytes < MUCH_BYTES:
            return None
        minutes = max(1, round(self.seconds / 60))
        return (
            f"compiling will take about {minutes} min or more and {self.peak_bytes / 1e9:.1f} GB of memory; "
            "fewer --cuts, --windows or --precision take less"
        )


def expected_effort(blocks: Sequence[BlockWork], encoder_ms: float, windows: int, variants: int) -> Effort:
    """Of an encoder in these blocks that takes so many milliseconds for a window, proved on so many windows.

    Every variant is run once and, from each cut and in each encoding, completed by the encoder in torch.
    """
    whole = max(1, sum(block.macs for block in blocks))
    behind = [sum(block.macs for block in blocks[index:]) / whole for index in range(len(blocks))]
    runs = 1 + variants * (1 + _ENCODINGS * sum(behind))
    weights = sum(block.weight_bytes for block in blocks)
    return Effort(encoder_ms / 1e3 * windows * runs, _LIBRARIES_BYTES + _WEIGHT_COPIES * weights)
