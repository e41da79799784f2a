"""The Q values of a splitter table as its file holds them: float32 for a row's best action, float16 for the others.

Q grows with the discount, to 20 and more, where float16 has steps of 0.016: as much as the margin by which one cut must
be better than another. The difference between an action and the best one of its row is small where it matters, and
there float16 is finest.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from runtime_edge.errors import TableError

MAX_Q = 65504.0
"""The largest float16."""
_STEPS = 1024
Rows = tuple[tuple[float, ...], ...]


def as_stored(q: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Q (state, action) as a file holds it; rounding twice changes nothing.

    A row's best value is rounded to 1/1024, and each other value's difference from it to float16, by at most 2**-11 of
    the difference. The best action stays the best.

    Raises TableError for values that are not finite or not within MAX_Q.
    """
    table = np.asarray(q, np.float64)
    if not (np.abs(table) <= MAX_Q).all():
        raise TableError(f"q: not all finite and within {MAX_Q:g}")
    return _joined(*_split(table))


def q_rows(q: npt.NDArray[np.float64]) -> Rows:
    """Q (state, action) as the field of a table."""
    return tuple(map(tuple, q.tolist()))


def packed(q: npt.ArrayLike) -> tuple[bytes, bytes]:
    """Q (state, action) as a file holds it: float32 (states,) and, relative to those, float16 (states, actions).

    Both are little-endian, in row-major order.
    """
    values, below = _split(np.asarray(q, np.float64))
    return values.tobytes(), below.tobytes()


def unpacked(values: bytes, below: bytes, states: int, actions: int) -> npt.NDArray[np.float64]:
    """The Q (state, action) that `packed` was given. Raises TableError naming the field."""
    best, less = _array("values", values, "<f4", (states,)), _array("q", below, "<f2", (states, actions))
    if not (less.max(1, initial=-1.0) == 0).all():
        raise TableError("q: the best action of a row is 0, and none is above it")
    return _joined(best, less)


def _split(table: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float16]]:
    """Values are multiples of 1/1024, so that their sums with float16 are exact in float64."""
    best = table.max(1)
    values = (np.round(best * _STEPS) / _STEPS).astype("<f4")
    below = np.maximum(table - best[:, None], -MAX_Q).astype("<f2")
    return values + np.float32(0), below + np.float16(0)  # -0.0 becomes 0.0


def _joined(values: npt.NDArray[np.float32], below: npt.NDArray[np.float16]) -> npt.NDArray[np.float64]:
    return values.astype(np.float64)[:, None] + below.astype(np.float64)


def _array(name: str, data: bytes, kind: str, shape: tuple[int, ...]) -> npt.NDArray[np.floating]:
    expected = math.prod(shape) * np.dtype(kind).itemsize
    if len(data) != expected:
        raise TableError(f"{name}: {len(data)} bytes, expected {expected}: {' x '.join(map(str, shape))} numbers")
    array: npt.NDArray[np.floating] = np.frombuffer(data, kind).reshape(shape)
    if not np.isfinite(array).all() or not (np.abs(array) <= MAX_Q).all():
        raise TableError(f"{name}: not all finite and within {MAX_Q:g}")
    return array
