"""Does (device prefix, wire, server suffix) equal the whole encoder? Measured for every cut and encoding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from runtime_edge.codec import CutCodec
from runtime_edge.errors import CheckFailed
from runtime_edge.manifest import Cut, Manifest, Parity
from streamsplit_compile.calibrate import encodings
from streamsplit_compile.segment import run_segments

FP32_LIMIT = 1e-4


@dataclass(frozen=True)
class CutParity:
    """How far a cut is from the whole encoder in float32."""

    cut: str
    max_abs_error: float
    """With the float32 wire."""
    agreement: dict[str, float]
    """Median cosine of the embeddings for each wire encoding."""
    worst: dict[str, float]
    """The smallest cosine for each wire encoding."""


def measure_cut(
    cut: Cut,
    activations: npt.NDArray[np.float32],
    suffix: Sequence[fx.GraphModule],
    expected: torch.Tensor,
    wire: Sequence[str] | None = None,
) -> CutParity:
    """Send the device's activations (windows, *cut.shape) over each encoding of `wire` and finish them in torch.

    Without `wire` over every encoding the cut has; "float32" must be among them.
    """
    results: dict[str, torch.Tensor] = {}
    for encoding in encodings(cut) if wire is None else wire:
        codec = CutCodec(cut, encoding)
        decoded = np.concatenate([codec.decode(*codec.encode(activation)) for activation in activations])
        with torch.inference_mode():
            results[encoding] = run_segments(suffix, torch.from_numpy(decoded))
    # An encoding can push values where the encoder is undefined (the logarithm of 0): that is no agreement at all.
    cosines = {
        name: torch.nn.functional.cosine_similarity(value, expected).nan_to_num(0.0).clamp(-1.0, 1.0)
        for name, value in results.items()
    }
    return CutParity(
        cut.name,
        float((results["float32"] - expected).abs().max()),
        {name: float(value.median()) for name, value in cosines.items()},
        {name: float(value.min()) for name, value in cosines.items()},
    )


def check_parity(results: Sequence[CutParity], limit: float = FP32_LIMIT) -> None:
    """Raise CheckFailed naming the worst cut when the float32 error of any is above `limit`."""
    failed = [result for result in results if not result.max_abs_error <= limit]  # NaN fails too
    if failed:
        worst = max(failed, key=lambda result: result.max_abs_error)
        raise CheckFailed(
            f"cut {worst.cut}: prefix and suffix are off by {worst.max_abs_error:.2e}, allowed {limit:.0e}"
        )


COSINE_FLOORS = {"fp16": 0.999, "int8": 0.98, "auto": 0.98}
"""Smallest median cosine of the embedding that a precision should keep at every cut."""


def shortfalls(manifest: Manifest) -> list[str]:
    """One line for each variant whose embedding is not near enough, naming the block that costs most."""
    lines = []
    for variant, parity in manifest.info.parity.items():
        floor = COSINE_FLOORS.get(variant.split("-")[1])
        if floor is None or not parity.cosine_median or min(parity.cosine_median) >= floor:
            continue
        losses = block_losses(parity)
        worst = max(range(len(losses)), key=losses.__getitem__)
        lines.append(
            f"{variant}: median cosine {min(parity.cosine_median):.4f}, wanted {floor}; "
            f"{manifest.info.blocks[worst]} costs most ({losses[worst]:.4f}): keep it in fp32 (--precision auto)"
        )
    return lines


def block_losses(parity: Parity) -> list[float]:
    """How much median cosine each block costs a variant, in block order."""
    return [before - after for before, after in itertools.pairwise(parity.cosine_median)]
