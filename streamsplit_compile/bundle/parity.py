"""Does (device prefix, wire, server suffix) equal the whole encoder? Measured for every cut and encoding.

prover = Prover(segments, windows)                    # the encoder in torch
parity = prover.prove(cuts, activations, progress)    # what the compiled blocks made of the same windows

The limits for each precision are here too.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from runtime_edge.formats.codec import CutCodec
from runtime_edge.formats.encoder.parts import Agreement, CutParity
from runtime_edge.formats.manifest import Cut, Parity
from streamsplit_compile.bundle.calibrate import CutFailed, encodings
from streamsplit_compile.bundle.quality import by_uncertainty, uncertainties
from streamsplit_compile.encoder.segment import in_float64, run_segments

FP32_LIMIT = 1e-4
"""Largest allowed error of an embedding; a share of its largest value if that exceeds 1, as float32 is no finer."""
MOST_TIMES = 10.0
"""The most by which the limit is raised for an encoder that is inexact in float32 itself."""
EXACT = "float32"
"""The wire encoding that loses nothing."""
Array = npt.NDArray[np.float32]


class Prover:
    """The encoder in torch on some windows, for measuring the error of compiled blocks.

    The server's result depends only on the bytes that arrive, so bytes already sent by another variant or an earlier
    try of `auto` are not run through the suffix again.
    """

    def __init__(
        self, segments: Sequence[fx.GraphModule], windows: Array, notice: Callable[[str], None] = lambda line: None
    ) -> None:
        """`windows` is (n, samples) float32, `segments` are the encoder's segments between the cuts to be checked.

        `notice` is called if more than FP32_LIMIT is allowed, with the reason.
        """
        self._segments, self._notice = segments, notice
        self._exact = [torch.from_numpy(windows)]
        with torch.inference_mode():
            for segment in segments:
                self._exact.append(run_segments([segment], self._exact[-1]))
        self.limit = FP32_LIMIT * scale_of(self._exact[-1].numpy())
        """Largest allowed error of these embeddings over the float32 wire."""
        self._most = MOST_TIMES * self.limit
        self._uncertainty = uncertainties(self._exact[-1].numpy())
        self._known = {
            _key(index, activation.numpy()): agreement(self._exact[-1], self._exact[-1], self._uncertainty)
            for index, activation in enumerate(self._exact)
        }

    def prove(
        self,
        cuts: Sequence[Cut],
        activations: Sequence[Array],
        progress: Callable[[str, int, int], None],
        wire: Sequence[str] | None = None,
    ) -> Parity:
        """Parity of one variant, whose blocks made `activations[k]` (windows, *cuts[k].shape) at cut k.

        It covers every encoding of the cut, or those in `wire`, which must include "float32".
        """
        found = []
        for cut, values in zip(cuts, activations, strict=True):
            progress("proving cuts", cut.index, len(cuts))
            chosen = encodings(cut) if wire is None else wire
            prefix = agreement(torch.from_numpy(values), self._exact[cut.index].reshape(values.shape))
            embeddings = {encoding: self._sent(cut, values, encoding) for encoding in chosen}
            found.append(CutParity(prefix=prefix, wire=embeddings))
        return Parity(windows=len(activations[0]), cuts=found)

    def check(self, cuts: Sequence[Cut], parity: Parity) -> None:
        """Raise CutFailed naming the worst cut when a float32 variant does not reproduce the encoder.

        If float32 itself costs the encoder more than the limit, as in the logarithm of filters that add up to almost
        nothing, adding in another order cannot come closer; that much error is then allowed.
        """
        own = self._own_error() if max(parity.max_abs_error) > self.limit else 0.0
        if own > self.limit:
            self.limit = min(own, self._most)
            self._notice(
                f"in float32 torch itself is off from float64 by {own:.1e} in this encoder; blocks may be off by "
                f"{self.limit:.1e}"
            )
        check_parity(cuts, parity, self.limit, own)

    def _own_error(self) -> float:
        """The error of the encoder in torch against itself in float64; 0 if it does not run in float64."""
        try:
            with torch.inference_mode():
                exact = run_segments([in_float64(segment) for segment in self._segments], self._exact[0].double())
        except (RuntimeError, TypeError, ValueError):
            return 0.0
        return agreement(self._exact[-1], exact).max_abs_error

    def _sent(self, cut: Cut, activations: Array, encoding: str) -> Agreement:
        """How close the server's embeddings of activations sent in this encoding are to the encoder's."""
        codec = CutCodec(cut, encoding)
        decoded = np.concatenate([codec.decode(*codec.encode(activation)) for activation in activations])
        key = _key(cut.index, decoded)
        if key not in self._known:
            with torch.inference_mode():
                embedding = run_segments(self._segments[cut.index :], torch.from_numpy(decoded))
            self._known[key] = agreement(embedding, self._exact[-1], self._uncertainty)
        return self._known[key]


def scale_of(embeddings: npt.NDArray[np.floating[Any]]) -> float:
    """The factor for an error bound: the largest absolute value, but at least 1."""
    return max(1.0, float(np.abs(np.nan_to_num(embeddings)).max()))


def _key(cut: int, activations: Array) -> tuple[int, bytes]:
    return cut, hashlib.sha256(activations.tobytes()).digest()


def agreement(
    found: torch.Tensor, expected: torch.Tensor, uncertainty: npt.NDArray[np.float64] | None = None
) -> Agreement:
    """Compare (windows, ...) with (windows, ...) float32; NaN and infinity count as the largest error.

    With the windows' `uncertainty` (windows,), agreement is also given by uncertainty.
    """
    found, expected = found.flatten(1).double(), expected.flatten(1).double()
    limit = torch.finfo(torch.float32).max
    error = (found - expected).abs().nan_to_num(nan=limit).clamp(max=limit).max()
    # An encoding can move values to where the encoder is undefined (the logarithm of 0): that counts as no agreement.
    cosine = torch.nn.functional.cosine_similarity(found, expected, eps=1e-30).nan_to_num(0.0).clamp(-1.0, 1.0)
    # A zero vector has no direction, but equal vectors agree.
    cosine = cosine.where((found != expected).any(dim=1), 1.0)
    return Agreement(
        max_abs_error=float(f"{float(error):.3g}"),
        cosine_median=round(float(cosine.median()), 7),
        cosine_worst=round(float(cosine.min()), 7),
        by_uncertainty=[] if uncertainty is None else by_uncertainty(cosine.numpy(), uncertainty),
    )


def check_parity(cuts: Sequence[Cut], parity: Parity, limit: float = FP32_LIMIT, own: float = 0.0) -> None:
    """Raise CutFailed naming the worst cut when the embedding is off by more than `limit` over the float32 wire.

    `own` is the error of torch in float32 against float64, if known.
    """
    worst = max(cuts, key=lambda cut: parity.max_abs_error[cut.index])
    error = parity.max_abs_error[worst.index]
    if error > limit:
        why = f"; in float32 torch itself is off by {own:.0e}: no angle or logarithm of next to nothing is stable"
        reason = f"prefix and suffix are off by {error:.2e}, allowed {limit:.0e}"
        raise CutFailed(worst.name, reason + (why if own > limit else ""))


COSINE_FLOORS = {"fp16": 0.999, "int8": 0.98, "auto": 0.98}
"""The lowest median cosine of the embedding that a precision may have at any cut."""


def shortfalls(blocks: Sequence[str], parity: Mapping[str, Parity]) -> list[str]:
    """One line for each variant whose embedding is not close enough, naming the block that costs most."""
    lines = []
    for variant, found in parity.items():
        floor = COSINE_FLOORS.get(variant.split("-")[1])
        if floor is None or lowest_median(found) >= floor:
            continue
        losses = block_losses(found)
        worst = max(range(len(losses)), key=losses.__getitem__)
        lines.append(
            f"{variant}: median cosine {lowest_median(found):.4f}, wanted {floor}; "
            f"{blocks[worst]} costs most ({losses[worst]:.4f}): {_ADVICE[variant.split('-')[1]]}"
        )
    return lines


_ADVICE = {
    "fp16": "use fp32, its weights leave the range of float16",
    "int8": "keep it in fp32 (--precision auto)",
    "auto": "calibrate on recordings like those it will hear (--calibrate DIR)",
}


def block_losses(parity: Parity) -> list[float]:
    """How much median cosine each block costs a variant, in block order."""
    medians = [exact.cosine_median for exact in parity.exact]
    return [before - after for before, after in itertools.pairwise(medians)]


def lowest_median(parity: Parity) -> float:
    """Median cosine of the embedding over the float32 wire at the worst cut."""
    return min(exact.cosine_median for exact in parity.exact)
