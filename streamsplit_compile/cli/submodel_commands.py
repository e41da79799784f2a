"""`ssc modules` and `ssc derive`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from runtime_edge.click_options import RenamedOption
from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import open_bundle
from streamsplit_compile.bundle.blocks import split_variant
from streamsplit_compile.bundle.calibrate import calibration_windows
from streamsplit_compile.bundle.digests import weights_digest
from streamsplit_compile.cli.options import PathParam, json_option, measured_profile, profile_option, together
from streamsplit_compile.cli.printing import Steps, print_json, print_table, print_warning
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import Checkpoint, from_module, load_module, save_checkpoint
from streamsplit_compile.modules.derivation import Cost, Limits
from streamsplit_compile.modules.imitation import imitate
from streamsplit_compile.modules.layers import layers_of
from streamsplit_compile.modules.prices import Costs, price
from streamsplit_compile.modules.ranking import RankedLayer, Study, embeddings_of, study
from streamsplit_compile.modules.submodels import Derived, derive, submodel
from streamsplit_compile.splitter.pricing import check_blocks

_SHOWN = 6
"""Groups named in a table."""

_asked_options = together(
    click.argument("encoder_file", metavar="ENCODER.PT", type=PathParam()),
    click.option("--target", default="rpi4", show_default=True, help="Target name or TOML file to price for."),
    profile_option,
    click.option("--bundle", type=PathParam(), help="The encoder's own bundle, which --profile was measured with."),
    click.option(
        "--recordings",
        "--windows",
        "recordings",
        cls=RenamedOption,
        earlier=["--windows"],
        type=PathParam(),
        help="Recordings to rank on; no labels are needed.",
    ),
    click.option(
        "--count", default=256, show_default=True, type=click.IntRange(16, 4096), help="Windows of the recordings."
    ),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of everything random."),
)


@dataclass(frozen=True)
class Asked:
    """What is asked of an encoder by both commands."""

    encoder_file: Path
    target: str
    profile_file: Path | None
    bundle: Path | None
    recordings: Path | None
    count: int
    """Windows of the recordings."""
    seed: int

    @property
    def how(self) -> str:
        """Where times come from, for people."""
        return "times as measured block by block" if self.profile_file else "predicted"

    def costs(self, found: Checkpoint) -> Costs:
        """What the encoder takes on the target. Raises UsageError naming the option, FormatError or BundleError."""
        board, profile = load_target(self.target), measured_profile(self.profile_file)
        encoder = from_module(found.name, found.config, found.module, None)
        if profile is None:
            if self.bundle is not None:
                raise UsageError("--bundle needs --profile, which was measured with it")
            return price(encoder, found.module).of(board)
        if self.bundle is None:
            raise UsageError("--profile needs --bundle, the bundle that was measured: it says where blocks end")
        if profile.target != board.name:
            raise UsageError(f"--profile {self.profile_file}: it is of {profile.target}, not of --target {board.name}")
        manifest = open_bundle(self.bundle).manifest
        check_blocks(profile, manifest)
        if manifest.info.encoder.weights != weights_digest(encoder.tensors):
            raise UsageError(
                f"--bundle {self.bundle}: it has other weights than {self.encoder_file}; compile and measure that one"
            )
        cuts = [cut.name for cut in manifest.info.cuts[1:]]
        return price(encoder, found.module, cuts).measured(
            board, cuts, profile.block_ms, split_variant(profile.variant)[1]
        )


def _study_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command `asked`, an `Asked`."""

    @_asked_options
    @functools.wraps(command)
    def with_asked(**given: Any) -> None:
        asked = Asked(**{field.name: given.pop(field.name) for field in dataclasses.fields(Asked)})
        command(asked, **given)

    return with_asked


@click.command("modules")
@_study_options
@json_option
def modules(asked: Asked, as_json: bool) -> None:
    """Show the groups of channels inside an encoder's blocks: their cost, and how important they are.

    Example: ssc modules encoder.pt --recordings recordings/
    """
    with Steps(quiet=as_json) as steps:
        known, _, _, (fixed, costs) = _studied(asked, steps)
    rows = [_row(one, costs[one.layer.name]) for one in known.layers]
    if as_json:
        print_json({"target": asked.target, "fixed_ms": fixed.ms, "layers": rows})
        return
    print_table(
        f"Groups of channels, priced for {asked.target}; everything else takes {fixed.ms:.3g} ms",
        ["layer", "channels", "groups", "ms", "without", "half loses", "most important", "least"],
        [
            [
                str(row["layer"]),
                str(row["channels"]),
                str(len(row["importance"])),
                f"{row['ms'][-1]:.3g}",
                "skipped" if row["skippable"] else "not possible",
                f"{row['losses'][len(row['importance']) // 2]:.4f}",
                ", ".join(map(str, row["ranking"][:_SHOWN])),
                ", ".join(map(str, row["ranking"][-_SHOWN:])),
            ]
            for row in rows
        ],
    )
    _warn(asked.recordings)


@click.command("derive")
@_study_options
@click.option("--budget-ms", type=click.FloatRange(0, min_open=True), help="Most milliseconds of one window.")
@click.option("--memory-mb", type=click.FloatRange(0, min_open=True), help="Most memory, weights and activations, MB.")
@click.option("--bytes", "weight_bytes", type=click.IntRange(1), help="Most bytes of weights.")
@click.option(
    "--steps", default=0, show_default=True, type=click.IntRange(0, 100_000),
    help="Steps of training to give the whole encoder's embeddings; 100 take a minute or more.",
)  # fmt: skip
@click.option("-o", "--out", type=PathParam(), required=True, help="Checkpoint to write.")
@json_option
def derive_(
    asked: Asked,
    budget_ms: float | None,
    memory_mb: float | None,
    weight_bytes: int | None,
    steps: int,
    out: Path,
    as_json: bool,
) -> None:
    """Write a sub-model: the encoder without the channels that matter least, within limits of a target.

    Example: ssc derive encoder.pt --target rpi-zero-2w --budget-ms 9 --recordings recordings/ -o small.pt
    """
    limits = Limits(budget_ms, weight_bytes, None if memory_mb is None else memory_mb * 1e6)
    if limits == Limits():
        raise click.UsageError("nothing to derive for: give --budget-ms, --memory-mb or --bytes")
    with Steps(quiet=as_json) as show:
        known, found, windows, (fixed, costs) = _studied(asked, show)
        derived = derive(known, fixed, costs, limits)
        small = submodel(found.module, known, derived.kept, windows)
        whole = embeddings_of(found.module, windows)
        if steps:
            imitate(small, windows, whole, steps, asked.seed, lambda done, total: show("training", done, total))
        cosine = float(torch.nn.functional.cosine_similarity(embeddings_of(small, windows), whole).mean())
    inner = {name: len(channels) for name, channels in derived.kept.items()}
    config = found.config | {"inner": found.config.get("inner", {}) | inner}
    save_checkpoint(found.name, config, small, out, found.untrained)
    _report(out, asked, known, derived, (fixed, costs), cosine, as_json)
    _warn(asked.recordings)


def _report(
    out: Path,
    asked: Asked,
    known: Study,
    derived: Derived,
    prices: Costs,
    cosine: float,
    as_json: bool,
) -> None:
    fixed, costs = prices
    whole_ms = fixed.ms + sum(own[-1].ms for own in costs.values())
    whole_bytes = fixed.weight_bytes + sum(own[-1].weight_bytes for own in costs.values())
    cost = derived.cost
    if as_json:
        print_json({
            "file": str(out), "target": asked.target, "kept": derived.kept, "ms": cost.ms, "whole_ms": whole_ms,
            "weight_bytes": cost.weight_bytes, "whole_weight_bytes": whole_bytes, "peak_bytes": cost.peak_bytes,
            "cosine": cosine,
        })  # fmt: skip
        return
    rows = [
        [one.layer.name, f"{len(derived.kept[one.layer.name])} of {one.layer.channels}"]
        if derived.kept[one.layer.name]
        else [one.layer.name, "skipped"]
        for one in known.layers
    ]
    print_table(f"{out}: channels kept", ["layer", "channels"], rows)
    click.echo(
        f"On {asked.target} {cost.ms:.3g} ms in place of {whole_ms:.3g}, {cost.weight_bytes / 1e6:.3g} MB of weights "
        f"in place of {whole_bytes / 1e6:.3g} ({asked.how}); mean cosine with the whole encoder {cosine:.3f}"
    )


def _studied(asked: Asked, steps: Steps) -> tuple[Study, Checkpoint, torch.Tensor, Costs]:
    """What windows tell about an encoder, the encoder, the windows, and the costs. Raises UsageError, FormatError."""
    found = load_module(asked.encoder_file)
    layers_of(found.module, str(asked.encoder_file))
    steps("pricing", 0, 3)
    prices = asked.costs(found)
    steps("ranking", 1, 3)
    windows = _windows(found, asked.recordings, asked.count, asked.seed)
    return study(found.module, windows, seed=asked.seed), found, windows, prices


def _windows(found: Checkpoint, recordings: Path | None, count: int, seed: int) -> torch.Tensor:
    """(n, samples) float32."""
    module: Any = found.module
    rate, size = int(module.sample_rate), int(module.window_samples)
    windows, _ = calibration_windows(recordings, rate, size, size // 2, count, seed)
    return torch.from_numpy(windows)


def _row(one: RankedLayer, costs: list[Cost]) -> dict[str, Any]:
    """A layer, for programs; a loss that cannot be had is None."""
    losses = [None if loss == float("inf") else loss for loss in one.losses]
    return {
        "layer": one.layer.name,
        "channels": one.layer.channels,
        "skippable": one.layer.skippable,
        "ms": [cost.ms for cost in costs],
        "weight_bytes": [cost.weight_bytes for cost in costs],
        "importance": list(one.importance),
        "ranking": one.ranking,
        "losses": losses,
    }


def _warn(recordings: Path | None) -> None:
    if recordings is None:
        print_warning("ranked on a synthesised soundscape, which tells little about sounds; give --recordings")
