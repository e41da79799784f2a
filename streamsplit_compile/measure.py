"""Run the freshly written blocks on the device runtime and put what was measured into the manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from runtime_edge.bundle import Bundle
from runtime_edge.manifest import Cut, Manifest, Parity, SelfTest
from runtime_edge.prefix import Prefix
from runtime_edge.selftest import probe_waveform
from streamsplit_compile.calibrate import calibrate_cut, collect_activations
from streamsplit_compile.parity import CutParity, check_parity, measure_cut
from streamsplit_compile.segment import run_segments

SELF_TEST_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Reference:
    """The encoder in torch, as its segments: what the compiled blocks are held against."""

    segments: Sequence[fx.GraphModule]


def measure(
    root: Path,
    manifest: Manifest,
    variant: str,
    windows: npt.NDArray[np.float32],
    reference: Reference | None,
    progress: Callable[[str, int, int], None],
    first_changed: int = 0,
) -> Manifest:
    """Fill in int8 scales, wire bytes, self-test, and with a reference agreement and parity.

    `windows` is (n, samples) float32. Blocks before `first_changed` are those of an earlier compile, so the cuts up to
    it keep their scales, and so does the embedding: it is of unit norm whatever the weights. Raises CheckFailed when a
    float32 cut is further than 1e-4 from the encoder.
    """
    info = manifest.info
    prefix = Prefix(Bundle(root, manifest, "", None), variant)
    cuts = info.cuts
    stale = range(first_changed + 1, len(cuts) - 1) if first_changed else range(len(cuts))
    if stale or reference is not None:
        activations = collect_activations(prefix, windows)
        cuts = [calibrate_cut(cut, activations[cut.index]) if cut.index in stale else cut for cut in cuts]
    probe = prefix.embed(probe_waveform(info.front_end.window_samples, info.front_end.sample_rate))
    self_test = SelfTest(embedding=probe.astype("<f4").tobytes(), tolerance=SELF_TEST_TOLERANCE)
    parity = info.parity
    if reference is not None:
        results = prove(cuts, activations, reference, progress)
        check_parity(results)
        cuts = [
            msgspec.structs.replace(cut, agreement=result.agreement) for cut, result in zip(cuts, results, strict=True)
        ]
        errors = [result.max_abs_error for result in results]
        parity = {variant: Parity(max_abs_error=errors, windows=len(windows))}
    info = msgspec.structs.replace(info, cuts=cuts, self_test=self_test, parity=parity)
    metadata = msgspec.structs.replace(manifest.additional_metadata, ssc=info)
    return msgspec.structs.replace(manifest, additional_metadata=metadata)


def prove(
    cuts: Sequence[Cut],
    activations: Sequence[npt.NDArray[np.float32]],
    reference: Reference,
    progress: Callable[[str, int, int], None],
) -> list[CutParity]:
    """Parity of every cut; `activations[k]` is (windows, *cuts[k].shape)."""
    waveforms = torch.from_numpy(activations[0][:, 0])
    with torch.inference_mode():
        expected = run_segments(reference.segments, waveforms)
    results = []
    for index, (cut, values) in enumerate(zip(cuts, activations, strict=True)):
        progress("proving cuts", index, len(cuts))
        results.append(measure_cut(cut, values, reference.segments[index:], expected))
    return results
