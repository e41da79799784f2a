"""Fits a bundle's exits to windows of recordings, writes them as assets, and measures them on other windows.

manifest = add_exits(root, manifest, variants, segments, plan, progress, notice)
manifest = keep_exits(root, base, manifest, variants, reference, windows)     with new weights
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from runtime_edge.errors import CheckFailed
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.encoder.exit_info import ExitInfo
from runtime_edge.formats.encoder.parts import StoredFile
from runtime_edge.formats.manifest import Cut, Manifest
from runtime_edge.inference.cut_assets.early_exit import LoadedExit
from runtime_edge.inference.prefix import Prefix
from runtime_edge.inference.self_test import self_test_waveform
from streamsplit_compile.bundle.bundle_writer import write_asset
from streamsplit_compile.bundle.cut_assets.fitting import (
    ALLOWED_LOSS,
    LEAST_WINDOWS,
    Array,
    FittingPlan,
    Progress,
    Segments,
    batches_of,
    compiled,
    enough,
    link_assets,
    windows_to_fit,
    with_info,
)
from streamsplit_compile.bundle.measure import Reference
from streamsplit_compile.bundle.parity import agreement, scale_of
from streamsplit_compile.bundle.quality import uncertainties
from streamsplit_compile.encoder.segment import run_segments
from streamsplit_compile.exits.exit_map import ExitMap, exit_layout, read_exit
from streamsplit_compile.exits.ridge import basis_of, fit_exit

MOST_WINDOWS = 2048
"""The most windows that exits are fitted to."""
_FEW_WINDOWS = 256
"""The number of windows for a very large encoder, which takes long to run on more."""
_MACS = 1e12
"""Total multiply-adds that the encoder may use on the windows; this sets their number between the two limits."""
_FILE_ERROR = 1e-3
"""Largest allowed difference between a compiled exit and torch's, as a share of the largest value."""


def add_exits(
    root: Path,
    manifest: Manifest,
    variants: Sequence[str],
    segments: Segments,
    plan: FittingPlan,
    progress: Progress,
    notice: Callable[[str], None],
) -> Manifest:
    """The manifest with an exit at every inner cut that can have one.

    If the recordings are too short to fit and measure them, there are none, and `notice` is called. Raises
    CheckFailed, UsageError or SourceError.
    """
    cuts = [cut for cut in manifest.info.cuts[1:-1] if exit_layout(cut) is not None]
    if not cuts:
        return manifest
    windows, unseen = windows_to_fit(manifest, plan.recordings, plan.seed, _window_count(manifest))
    if not enough(unseen, "exits", notice):
        return manifest
    progress("fitting exits", 0, 1)
    blocks = fitted_exits(cuts, segments, windows)
    drafts = [_write(root, cut, blocks[cut.name], variants, len(windows)) for cut in cuts]
    drafted = with_info(manifest, exits=tuple(drafts))
    return with_info(drafted, exits=tuple(_measure(root, drafted, variants, segments, unseen, blocks)))


def keep_exits(
    root: Path, base: Bundle, manifest: Manifest, variants: Sequence[str], reference: Reference | None, windows: Array
) -> Manifest:
    """The manifest of new weights with the base's exits, measured again on the reference's windows, or on `windows`.

    An exit whose median cosine with the embedding is more than ALLOWED_LOSS below what it was with the base's weights
    on the same windows is refitted to the reference's recordings. It is withdrawn if that does not help or there are no
    recordings. Without a reference all exits are withdrawn.
    """
    cuts = [manifest.cut_named(info.cut) for info in base.manifest.info.exits]
    if reference is None or not cuts:
        return with_info(manifest, exits=())
    unseen, more = windows if reference.windows is None else reference.windows, windows[:0]
    if reference.recordings is not None:
        seed = manifest.info.calibration.seed
        more, others = windows_to_fit(manifest, reference.recordings, seed, _window_count(manifest))
        unseen, more = (others, more) if len(others) >= LEAST_WINDOWS else (unseen, more[:0])
    least = {name: near - ALLOWED_LOSS for name, near in _similarities(base, variants[0], unseen).items()}

    def good(drafts: Sequence[ExitInfo], blocks: Mapping[str, ExitMap]) -> dict[str, ExitInfo]:
        """The exits that are close enough to the embedding, by cut."""
        drafted = with_info(manifest, exits=tuple(drafts))
        measured = _measure(root, drafted, variants, reference.segments, unseen, blocks)
        return {info.cut: info for info in measured if info.agreement[variants[0]].cosine_median >= least[info.cut]}

    carried = {}
    for info in base.manifest.info.exits:
        carried[info.cut] = read_exit(base.read(info.weights.file), manifest.cut_named(info.cut), str(base.path))
        link_assets(base, root, info)
    kept = good(base.manifest.info.exits, carried)
    lost = [cut for cut in cuts if cut.name not in kept]
    if lost and len(more):
        anew = fitted_exits(lost, reference.segments, more)
        kept |= good([_write(root, cut, anew[cut.name], variants, len(more)) for cut in lost], anew)
    return with_info(manifest, exits=tuple(kept[cut.name] for cut in cuts if cut.name in kept))


def fitted_exits(cuts: Sequence[Cut], segments: Segments, windows: Array) -> dict[str, ExitMap]:
    """Fit the exit of each cut in closed form."""
    statistics, embeddings = statistics_of(cuts, segments, windows)
    basis = basis_of(embeddings)
    found = {}
    for cut in cuts:
        layout = exit_layout(cut)
        assert layout is not None
        found[cut.name] = fit_exit(layout, statistics[cut.name], embeddings, basis)
    return found


def _window_count(manifest: Manifest) -> int:
    macs = sum(component.additional_metadata.ssc.macs for component in manifest.components.values())
    return int(min(MOST_WINDOWS, max(_FEW_WINDOWS, _MACS / max(macs, 1))))


def statistics_of(cuts: Sequence[Cut], segments: Segments, windows: Array) -> tuple[dict[str, Tensor], Tensor]:
    """For each cut the statistics (n, features) that its exit takes of the windows; also the embeddings (n, d)."""
    takers: dict[int, tuple[str, ExitMap]] = {}
    for cut in cuts:
        layout = exit_layout(cut)
        assert layout is not None
        takers[cut.index] = cut.name, ExitMap(layout, 1, 1, unit=False)
    collected: dict[str, list[Tensor]] = {cut.name: [] for cut in cuts}
    embeddings = []
    for batch in batches_of((), windows):
        with torch.inference_mode():
            values = batch
            for index, segment in enumerate(segments, 1):
                values = run_segments([segment], values)
                if index in takers:
                    name, taker = takers[index]
                    collected[name].append(taker.statistics(values))
            embeddings.append(values)
    return {name: torch.cat(found) for name, found in collected.items()}, torch.cat(embeddings)


def _write(root: Path, cut: Cut, block: ExitMap, variants: Sequence[str], windows: int) -> ExitInfo:
    """Write the assets of one exit; it has no measurements yet."""
    weights = block.to_bytes()
    return ExitInfo(
        cut=cut.name,
        files=compiled(root, "exit", block, cut.shape, variants),
        weights=StoredFile(file=write_asset(root, "exit.npz", weights), bytes=len(weights)),
        agreement={},
        self_test={},
        macs=block.macs,
        windows=windows,
    )


def _measure(
    root: Path,
    manifest: Manifest,
    variants: Sequence[str],
    segments: Segments,
    windows: Array,
    blocks: Mapping[str, ExitMap],
) -> list[ExitInfo]:
    """The manifest's exits with measurements on some windows, after each variant's prefix.

    Raises CheckFailed when an exit's result differs from torch's for the same activation.
    """
    found = list(manifest.info.exits)
    if not found:
        return found
    expected = torch.cat(list(batches_of(segments, windows)))
    uncertain = uncertainties(expected.numpy())
    front_end = manifest.info.front_end
    chirp = self_test_waveform(front_end.window_samples, front_end.sample_rate)
    for variant in variants:
        prefix = Prefix(Bundle(root, manifest, "", None), variant)
        exits = [LoadedExit(prefix, info) for info in found]
        given = _embeddings(prefix, exits, [*windows, chirp])
        for index, (info, embeddings) in enumerate(zip(found, given, strict=True)):
            activation = prefix.buffers[manifest.cut_named(info.cut).index]
            with torch.inference_mode():
                exact = blocks[info.cut](torch.from_numpy(activation)).numpy()[0]
            error = float(np.abs(embeddings[-1] - exact).max())
            if not error <= _FILE_ERROR * scale_of(exact):
                raise CheckFailed(f"exit at {info.cut}: compiled it is off by {error:.1e} from torch's")
            near = agreement(torch.from_numpy(embeddings[:-1]), expected, uncertain)
            found[index] = msgspec.structs.replace(
                info,
                agreement={**info.agreement, variant: near},
                self_test={**info.self_test, variant: embeddings[-1].astype("<f4").tobytes()},
            )
    return found


def _similarities(bundle: Bundle, variant: str, windows: Array) -> dict[str, float]:
    """For each cut the median cosine of its exit's embeddings with the whole encoder's, all from compiled blocks."""
    prefix = Prefix(bundle, variant)
    exits = [LoadedExit(prefix, info) for info in bundle.manifest.info.exits]
    given = _embeddings(prefix, exits, windows)
    whole = torch.from_numpy(np.stack([prefix.embed(window) for window in windows]))
    return {early.info.cut: agreement(torch.from_numpy(found), whole).cosine_median
            for early, found in zip(exits, given, strict=True)}  # fmt: skip


def _embeddings(prefix: Prefix, exits: Sequence[LoadedExit], windows: Sequence[Array] | Array) -> list[Array]:
    """Embeddings (n, d) of the windows from each exit on the device runtime; the last window stays in the prefix."""
    found: list[list[Array]] = [[] for _ in exits]
    for window in windows:
        prefix.start(window)
        for early, collected in zip(exits, found, strict=True):
            prefix.advance(early.cut)
            collected.append(early.embedding())
    return [np.stack(collected) for collected in found]
