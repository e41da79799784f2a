"""The changed components of a mixture, as a reply carries them: one byte per value.

All numbers are absolute, so a lost answer does no harm to later ones. A whole mixture (float16 of all components,
`GaussianMemory.to_bytes`) has a different length.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from runtime_edge.errors import FrameError

Array = npt.NDArray[np.float32]
_STEPS = 127


class Components(NamedTuple):
    """Some components of a mixture; n of them."""

    places: npt.NDArray[np.uint8]
    """Indices, (n,), increasing."""
    weights: Array
    """(n,)."""
    means: Array
    """(n, d)."""
    deviations: Array
    """(n, d)."""


def components_bytes(count: int, dim: int) -> int:
    """Bytes of `count` components on the wire."""
    return count * (1 + 2 + 2 * (4 + dim))


def encode_components(components: Components) -> bytes:
    """Index, weight (float16), and for mean and deviations each a float32 step size and the steps."""
    parts = []
    for place, weight, mean, deviation in zip(*components, strict=True):
        parts += [bytes((int(place),)), np.float16(weight).astype("<f2").tobytes(), _steps(mean), _steps(deviation)]
    return b"".join(parts)


def decode_components(data: bytes, count: int, dim: int) -> Components:
    """Components of a mixture with `count` of them. Raises FrameError unless they are valid for such a mixture."""
    size = components_bytes(1, dim)
    found, rest = divmod(len(data), size)
    if rest or not 1 <= found <= count:
        raise FrameError(f"components of a mixture: {len(data)} bytes, no multiple of {size} up to {count} times")
    rows = np.frombuffer(data, np.uint8).reshape(found, size)
    places = rows[:, 0].copy()
    if int(places[-1]) >= count or (np.diff(places.astype(int)) <= 0).any():
        raise FrameError("components of a mixture: their places are not in order")
    weights = rows[:, 1:3].copy().view("<f2")[:, 0].astype(np.float32)
    means, deviations = _values(rows[:, 3 : 7 + dim]), _values(rows[:, 7 + dim :])
    if not (np.isfinite(weights).all() and np.isfinite(means).all() and np.isfinite(deviations).all()):
        raise FrameError("components of a mixture: a value is not finite")
    if not ((weights > 0) & (weights <= 1)).all() or (deviations < 0).any():
        raise FrameError("components of a mixture: a weight or a deviation is not one")
    return Components(places, weights, means, deviations)


def _steps(values: Array) -> bytes:
    step = np.array(max(float(np.abs(values).max()), 1e-30) / _STEPS, "<f4")
    return bytes(step.tobytes() + np.rint(values / step).astype(np.int8).tobytes())


def _values(rows: npt.NDArray[np.uint8]) -> Array:
    step = rows[:, :4].copy().view("<f4")
    with np.errstate(over="ignore", invalid="ignore"):
        values: Array = rows[:, 4:].copy().view(np.int8).astype(np.float32) * step
    return values
