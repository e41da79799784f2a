"""Runs newly written blocks on the device runtime and puts the measurements into the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from runtime_edge.errors import CheckFailed
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.encoder.parts import MOST_TOLERANCE, Expected
from runtime_edge.formats.manifest import Cut, Manifest, Parity, SelfTest
from runtime_edge.inference.prefix import Prefix
from runtime_edge.inference.self_test import self_test_waveform
from streamsplit_compile.bundle.blocks import derive_precisions, keep_in_fp32
from streamsplit_compile.bundle.calibrate import calibrate_cut, collect_activations
from streamsplit_compile.bundle.parity import (
    COSINE_FLOORS,
    EXACT,
    Prover,
    block_losses,
    lowest_median,
    scale_of,
)
from streamsplit_compile.encoder.segment import run_segments

TOLERANCES = {"fp32": 1e-3, "fp16": 1e-2, "int8": 0.1, "auto": 0.1}
"""Tolerance of a device's self-test: other processors add in another order, after which int8 may round differently."""
Progress = Callable[[str, int, int], None]
_NONE: Mapping[str, Prefix] = MappingProxyType({})


@dataclass(frozen=True)
class ArrivedWindows:
    """Windows that devices shipped to a server as full activations at some cut, not through a bottleneck."""

    fit: Mapping[int, Tensor]
    """Activations (n, ...) float32 to fit to, by the index of the cut they arrived at."""
    unseen: Mapping[int, Tensor]
    """Other activations, which nothing was fitted to."""
    bottleneck_steps: int = 0
    """Further training steps on these windows for bottlenecks that were trained."""

    @staticmethod
    def at(cut: int, arrived: Mapping[int, Tensor], segments: Sequence[fx.GraphModule]) -> Tensor:
        """Activations at a cut, with these weights, of all windows that arrived there or at an earlier cut."""
        with torch.inference_mode():
            found = [
                run_segments(segments[start:cut], value) for start, value in sorted(arrived.items()) if start <= cut
            ]
        return torch.cat(found) if found else torch.empty(0)


@dataclass(frozen=True)
class Reference:
    """The encoder in torch, as segments, which the compiled blocks are compared with."""

    segments: Sequence[fx.GraphModule]
    windows: npt.NDArray[np.float32] | None = None
    """(n, samples) to compare on; None for the calibration windows."""
    notice: Callable[[str], None] = lambda line: None
    """Called if the allowed error is larger than usual."""
    recordings: Path | None = None
    """Source of more windows for refitting; None if there is none."""
    arrived: ArrivedWindows | None = None
    """Windows that devices sent, also for refitting; None if there are none."""


def measure(
    root: Path,
    manifest: Manifest,
    wanted: Sequence[str],
    windows: npt.NDArray[np.float32],
    reference: Reference | None,
    progress: Progress,
    first_changed: int = 0,
    loaded: Mapping[str, Prefix] = _NONE,
) -> Manifest:
    """Make the wanted variants that are missing and fill in scales, wire bytes, self-tests, agreement and parity.

    `windows` is (n, samples) float32; `wanted[0]` is a float32 variant, on which the cuts are calibrated. Blocks before
    `first_changed` come from an earlier compile, so the cuts up to it keep their scales, and so does the embedding,
    which has unit norm whatever the weights. Without a reference the parity is empty, since these weights cannot be
    checked; the cuts keep their earlier agreement, which splitter tables are made from. `loaded` has prefixes of that
    earlier compile by variant; their blocks are reused where the files are the same. Raises CheckFailed when a float32
    cut is further than 1e-4 from the encoder or values are not finite.
    """
    info = manifest.info
    cuts = info.cuts
    stale = range(first_changed + 1, len(cuts) - 1) if first_changed else range(len(cuts))
    activations = None
    if stale or reference is not None or any(variant.endswith(("int8", "auto")) for variant in wanted):
        activations = collect_activations(_prefix(root, manifest, wanted[0], loaded), windows)
        cuts = [calibrate_cut(cut, activations[cut.index]) if cut.index in stale else cut for cut in cuts]
    manifest = derive_precisions(root, manifest, wanted, activations, progress)
    parity: dict[str, Parity] = {}
    if reference is not None and activations is not None:
        proved = windows if reference.windows is None else reference.windows
        if reference.windows is not None:
            activations = collect_activations(_prefix(root, manifest, wanted[0], loaded), proved)
        prover = Prover(reference.segments, proved, reference.notice)
        parity[wanted[0]] = prover.prove(cuts, activations, progress)
        prover.check(cuts, parity[wanted[0]])
        for variant in wanted[1:]:
            manifest, parity[variant] = settle(root, manifest, variant, cuts, proved, prover, progress)
        cuts = [
            msgspec.structs.replace(cut, agreement={name: found.cosine_median for name, found in proved.wire.items()})
            for cut, proved in zip(cuts, parity[wanted[0]].cuts, strict=True)
        ]
    info = msgspec.structs.replace(info, cuts=cuts, self_test=_self_test(root, manifest, wanted, loaded), parity=parity)
    metadata = msgspec.structs.replace(manifest.additional_metadata, ssc=info)
    return msgspec.structs.replace(manifest, additional_metadata=metadata)


def _prefix(root: Path, manifest: Manifest, variant: str, loaded: Mapping[str, Prefix] = _NONE) -> Prefix:
    return Prefix(Bundle(root, manifest, "", None), variant, previous=loaded.get(variant))


def _self_test(root: Path, manifest: Manifest, wanted: Sequence[str], loaded: Mapping[str, Prefix]) -> SelfTest:
    """Each variant's embedding of the self-test chirp. Raises CheckFailed for values that are not finite."""
    front_end = manifest.info.front_end
    waveform = self_test_waveform(front_end.window_samples, front_end.sample_rate)
    found: dict[str, Expected] = {}
    for variant in wanted:
        prefix = _prefix(root, manifest, variant, loaded)
        with ThreadPoolExecutor() as pool:
            list(pool.map(prefix.load, prefix.missing))
        embedding = prefix.embed(waveform)
        if not np.isfinite(embedding).all():
            raise CheckFailed(f"{variant}: the self-test's embedding is NaN or infinite; check the encoder's weights")
        tolerance = min(TOLERANCES[variant.split("-")[1]] * scale_of(embedding), MOST_TOLERANCE)
        found[variant] = Expected(embedding=embedding.astype("<f4").tobytes(), tolerance=tolerance)
    first = found.pop(wanted[0])
    others = {variant: expected for variant, expected in found.items() if not variant.endswith("fp32")}
    return SelfTest(embedding=first.embedding, tolerance=first.tolerance, variants=others)


def settle(
    root: Path,
    manifest: Manifest,
    variant: str,
    cuts: Sequence[Cut],
    windows: npt.NDArray[np.float32],
    prover: Prover,
    progress: Progress,
) -> tuple[Manifest, Parity]:
    """Parity of a variant; in `auto`, the costliest blocks go back to float32 until the embedding is close enough.

    Raises CheckFailed when a float32 variant does not reproduce the encoder.
    """
    while True:
        activations = collect_activations(_prefix(root, manifest, variant), windows)
        found = prover.prove(cuts, activations, progress, wire=(EXACT,))
        short = variant.endswith("auto") and lowest_median(found) < COSINE_FLOORS["auto"]
        quantised = [
            index
            for index, name in enumerate(manifest.info.blocks)
            if manifest.variant(name, variant).precision == "int8"
        ]
        if not short or not quantised:
            break
        losses = block_losses(found)
        worst = max(quantised, key=losses.__getitem__)
        manifest = keep_in_fp32(manifest, variant, manifest.info.blocks[worst])
    if variant.endswith("fp32"):
        prover.check(cuts, found)
    return manifest, prover.prove(cuts, activations, progress)
