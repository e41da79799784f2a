"""Turns hard caps on bytes and latency into prices: the smallest multipliers with which the best policy keeps the caps.

The prices of bytes and of late windows are found by bisection on the mean outcomes of every table row; the learner then
maximises the reward less the prices. Privacy floor and memory need no price: actions beyond them are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

from runtime_edge.errors import CheckFailed
from runtime_edge.formats.records.table import Limits
from streamsplit_compile.splitter.environment import ActionOutcomes, Environment, simulate
from streamsplit_compile.splitter.evaluation import LATE_SHARE, Consequences
from streamsplit_compile.splitter.policies import Actions, Array
from streamsplit_compile.splitter.traces import Traces

_HIGHEST_PRICE = 1e4
_ROUNDS = 4
_HALVINGS = 30


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Means over every row's windows, (row, action), and how often each row occurs, (row,)."""

    share: Array
    reward: Array
    late: Array
    kilobytes: Array


def priced(environment: Environment, traces: Traces, rows: Actions, n_rows: int, strictness: float) -> Environment:
    """The environment with prices that keep its caps on these traces, each cap first multiplied by `strictness`.

    Raises CheckFailed when no choice of cuts can keep the caps.
    """
    limits = environment.limits
    if limits.mb_per_hour is None and limits.latency_p95_ms is None:
        return environment
    means = _means(environment, simulate(environment, traces), rows, n_rows)
    kilobytes = np.inf if limits.mb_per_hour is None else limits.mb_per_hour * 1e3 * environment.hop_s / 3600
    late = 1.0 if limits.latency_p95_ms is None else LATE_SHARE
    _check_possible(limits, means, kilobytes, late, environment.hop_s)
    byte_price = late_price = 0.0
    for _ in range(_ROUNDS):  # each price changes what the other one has to achieve
        byte_price = _smallest(lambda p: _spent(means, p, late_price)[0] <= kilobytes * strictness)  # noqa: B023
        late_price = _smallest(lambda p: _spent(means, byte_price, p)[1] <= late * strictness)  # noqa: B023
    limits = msgspec.structs.replace(limits, price_per_kb=round(byte_price, 6), price_late=round(late_price, 6))
    return dataclasses.replace(environment, limits=limits)


def broken_limits(limits: Limits, found: Consequences) -> list[str]:
    """The caps that a policy exceeds, one phrase for each."""
    broken = []
    if limits.mb_per_hour is not None and found.mb_per_hour > limits.mb_per_hour:
        broken.append(f"{found.mb_per_hour:.2f} MB/h, the cap is {limits.mb_per_hour:g}")
    if limits.latency_p95_ms is not None and found.latency_p95_ms > limits.latency_p95_ms:
        broken.append(f"latency p95 {found.latency_p95_ms:.0f} ms, the cap is {limits.latency_p95_ms:g}")
    return broken


def _means(environment: Environment, outcome: ActionOutcomes, rows: Actions, n_rows: int) -> _Rows:
    count = np.bincount(rows.ravel(), minlength=n_rows)

    def mean(values: npt.NDArray[np.generic]) -> Array:
        sums = [np.bincount(rows.ravel(), values[..., a].ravel(), n_rows) for a in range(values.shape[2])]
        return np.asarray(np.stack(sums, 1) / np.maximum(count, 1)[:, None], np.float64)

    cap = environment.limits.latency_p95_ms
    late = np.zeros(outcome.reward.shape) if cap is None else outcome.latency_ms > cap
    return _Rows(count / count.sum(), mean(outcome.reward), mean(late), environment.bytes[None] / 1000)


def _spent(means: _Rows, byte_price: float, late_price: float) -> tuple[float, float]:
    """Kilobytes per window and share of late windows, under the best policy at these prices."""
    value = means.reward - byte_price * means.kilobytes - late_price * means.late
    best = value.argmax(1)
    every = np.arange(len(best))
    return float(means.share @ means.kilobytes[0][best]), float(means.share @ means.late[every, best])


def _smallest(holds: Callable[[float], bool]) -> float:
    """The smallest price, to many digits, for which a monotone condition holds; the highest price if none does."""
    if holds(0.0):
        return 0.0
    low, high = 1e-4, _HIGHEST_PRICE
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _check_possible(limits: Limits, means: _Rows, kilobytes: float, late: float, hop_s: float) -> None:
    least = means.kilobytes.min()
    if least > kilobytes:
        raise CheckFailed(
            f"bytes cap {limits.mb_per_hour:g} MB/h: the smallest cut ships {least * 3.6 / hop_s:.2f} MB/h; raise it"
        )
    if means.share @ means.late.min(1) > late:
        raise CheckFailed(
            f"latency cap {limits.latency_p95_ms:g} ms: whatever the cuts, {means.share @ means.late.min(1):.0%} of "
            f"windows on these traces are later, and {late:.0%} may be; raise it"
        )
    spent = _spent(means, 0.0, _HIGHEST_PRICE)
    if spent[1] <= late < _spent(means, _smallest(lambda p: _spent(means, p, 0.0)[0] <= kilobytes), 0.0)[1]:
        # Each cap can be kept alone; both together only if some mixture of prices keeps both.
        both = any(
            _spent(means, p, _HIGHEST_PRICE)[0] <= kilobytes and _spent(means, p, _HIGHEST_PRICE)[1] <= late
            for p in np.geomspace(1e-3, _HIGHEST_PRICE, 60)
        )
        if not both:
            raise CheckFailed(
                f"caps {limits.mb_per_hour:g} MB/h and {limits.latency_p95_ms:g} ms hold alone, not both; raise one"
            )
