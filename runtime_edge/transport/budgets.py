"""A device's traffic, and the budgets that limit it: `--mb-per-day` and `--update-mb-per-day`.

<state>/traffic.json      what is left of both, and recent traffic; a minute old at most

Within a run the time is measured with a clock that never jumps; between two runs with the wall clock, and if that was
set back, no time counts. Once `--mb-per-day` is used up, the link is held (`Transport.held`): everything that sends
behaves as if there were no connection. What keeps the connection alive continues, and is counted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from runtime_edge.base.checked_files import read_checked, write_checked
from runtime_edge.base.text import moment, size
from runtime_edge.base.traffic.budget import DAY_S, DAYS, Budget, on_the_way
from runtime_edge.base.traffic.traffic_log import Rate, Span, Traffic, TrafficLog
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import FormatError, WaitsForBudget
from runtime_edge.formats.strict import Strict, decode
from runtime_edge.transport.protocol import Transport

_LOG = logging.getLogger(__name__)
_MAX_BYTES = 64 << 10
_TICK_S, _SAVE_S = 0.25, 60.0
_GO_ON_S: Final = 10.0
"""After the budget was used up, frames resume once this much time's worth has accrued, rather than one at a time."""

_Time = Annotated[float, Meta(ge=0, le=1e12)]
_Left = Annotated[float, Meta(ge=-1e18, le=1e18)]


class KeptTraffic(Strict, frozen=True, kw_only=True):
    """The contents of the file."""

    format: Literal["streamsplit.traffic/1"] = "streamsplit.traffic/1"
    at: _Time
    """When it was written, s since 1970."""
    left: _Left | None = None
    updates_left: _Left | None = None
    """Bytes left of each budget; None: there was no such budget."""
    spans: Annotated[tuple[Span, ...], Meta(max_length=128)] = ()
    """What has passed, oldest first."""


class BudgetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One budget at one moment."""

    mb_per_day: float
    left_bytes: int
    """Bytes left; below 0 a debt."""


class TrafficStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What passed the interface, and what may still pass."""

    run: Traffic = Traffic()
    """Traffic since the start."""
    hour: Rate = Rate()
    """Traffic in an hour."""
    month: Rate = Rate()
    """Traffic in 30 days."""
    counted_by: str = ""
    """What counts it: the kernel, including all headers, or the program, without them."""
    budget: BudgetStatus | None = None
    update_budget: BudgetStatus | None = None
    held_until: float | None = None
    """When frames resume, seconds since the epoch; None if they are not held."""
    withheld: int = 0
    """Events that were not published while the link was held."""


class Budgets:
    """Counts traffic, and decides what may pass.

    Args:
        config: the device's settings.
        connection: the connection to count; None without a broker.
        wall: seconds since the epoch.
        now: seconds of a clock that never jumps.
    """

    def __init__(
        self,
        config: DeviceConfig,
        connection: Transport | None,
        wall: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._connection, self._wall, self._now = config.state / "traffic.json", connection, wall, now
        kept, since_s = _read(self._path, wall())
        self._log = TrafficLog(kept.spans)
        self._all = _budget(config.mb_per_day, kept.left, since_s)
        self._updates = _budget(config.update_mb_per_day, kept.updates_left, since_s)
        self._charged, self._charged_at = Traffic(), now()
        self._noted = Traffic()
        """The part of `_charged` that is already in the log."""
        self._saved_at, self._said_at = now(), -math.inf
        self._log.add(wall(), Traffic())
        self.charge()

    def charge(self) -> None:
        """Charge the budgets with the traffic since the last call."""
        traffic, now = self._traffic(), self._now()
        passed, seconds = traffic.since(self._charged), now - self._charged_at
        self._charged, self._charged_at = traffic, now
        if self._all is not None:
            self._all = self._all.after(seconds).spent(passed.up + passed.down)
            if self._connection is not None:
                self._hold_or_go_on(self._connection, self._all)
        if self._updates is not None:
            self._updates = self._updates.after(seconds).spent(passed.updates)

    def may_update(self, count: int, needed: bool = False) -> None:
        """Check that an update of `count` bytes may be fetched now; if it is `needed` to run at all, also on credit.

        Raises WaitsForBudget with the time from which on it may be fetched.
        """
        self.charge()
        count = on_the_way(count) if count else 0
        for name, budget in (("update-mb-per-day", self._updates), ("mb-per-day", self._all)):
            wait_s = 0.0 if budget is None else budget.wait_s(count)
            if budget is None or not wait_s or (needed and math.isfinite(wait_s)):
                continue
            until = self._wall() + wait_s
            if math.isinf(wait_s):
                least = math.ceil(10 * count / DAYS / 1e6) / 10
                raise WaitsForBudget(
                    f"{size(count)} are more than {DAYS} days of --{name} {budget.per_day / 1e6:g}: make it at least "
                    f"{least:g}, or bring the bundle here by `ssc edge install`",
                    until,
                )
            what = f"{size(count)} wait" if count else "an update waits"
            raise WaitsForBudget(
                f"{what} until {moment(until)}: of --{name} {budget.per_day / 1e6:g} are left "
                f"{size(max(0.0, budget.left))}",
                until,
            )

    @property
    def held(self) -> bool:
        """Whether nothing may be sent now."""
        return self._connection is not None and bool(self._connection.held)

    @property
    def limits_updates(self) -> bool:
        """Whether the size of an update has to be known."""
        return self._updates is not None or self._all is not None

    async def watch_forever(self) -> None:
        """Until cancelled, save the traffic every minute, and hold the link when the budget is used up."""
        while True:
            await asyncio.sleep(_SAVE_S if self._all is None else _TICK_S)
            self.charge()
            if self._now() - self._saved_at >= _SAVE_S:
                await asyncio.to_thread(self._write, self._kept())

    def save(self) -> None:
        """Save what is left and what has passed."""
        self.charge()
        self._write(self._kept())

    def status(self) -> TrafficStatus:
        """The traffic and budgets now."""
        self.charge()
        self._note()
        wall = self._wall()
        held_s = None if self._all is None or not self.held else self._all.wait_s(_go_on(self._all))
        return TrafficStatus(
            run=self._charged,
            hour=self._log.an_hour(wall),
            month=self._log.a_month(wall),
            counted_by="" if self._connection is None else self._connection.counted_by,
            budget=_told(self._all),
            update_budget=_told(self._updates),
            held_until=None if held_s is None else wall + held_s,
            withheld=0 if self._connection is None else self._connection.withheld,
        )

    def _traffic(self) -> Traffic:
        return Traffic() if self._connection is None else self._connection.traffic()

    def _hold_or_go_on(self, connection: Transport, budget: Budget) -> None:
        if connection.held and budget.left >= _go_on(budget):
            connection.held = ""
        elif connection.held or budget.left <= 0:
            until = moment(self._wall() + budget.wait_s(_go_on(budget)))
            connection.held = f"--mb-per-day {budget.per_day / 1e6:g} is used up until {until}"
            if self._now() - self._said_at >= DAY_S:
                self._said_at = self._now()
                _LOG.warning(
                    "%s: windows are finished here and their frames wait in the spool, now and whenever the budget "
                    "is used up again",
                    connection.held,
                )

    def _note(self) -> None:
        """Add to the log what it does not have yet."""
        self._log.add(self._wall(), self._charged.since(self._noted))
        self._noted = self._charged

    def _kept(self) -> KeptTraffic:
        self._note()
        self._saved_at = self._now()
        return KeptTraffic(
            at=max(0.0, self._wall()),
            left=None if self._all is None else self._all.left,
            updates_left=None if self._updates is None else self._updates.left,
            spans=tuple(self._log.spans),
        )

    def _write(self, kept: KeptTraffic) -> None:
        try:
            write_checked(self._path, msgspec.json.encode(kept))
        except OSError as exc:
            _LOG.warning("%s: cannot be written (%s)", self._path, exc.strerror or exc)


def _read(path: Path, wall: float) -> tuple[KeptTraffic, float]:
    """What an earlier run left, and the seconds since; if the file is damaged, nothing is left of the budgets."""
    try:
        data = read_checked(path, _MAX_BYTES)
        if data is None:
            return KeptTraffic(at=wall), 0.0
        kept = decode(data, KeptTraffic, str(path), _MAX_BYTES)
        return kept, wall - kept.at
    except FormatError as exc:
        _LOG.warning("%s; the budgets start with nothing left", exc)
        return KeptTraffic(at=wall, left=0.0, updates_left=0.0), 0.0


def _budget(mb_per_day: float | None, left: float | None, since_s: float) -> Budget | None:
    if mb_per_day is None:
        return None
    per_day = mb_per_day * 1e6
    return Budget.begun(per_day) if left is None else Budget.kept(per_day, left).after(since_s)


def _told(budget: Budget | None) -> BudgetStatus | None:
    return None if budget is None else BudgetStatus(mb_per_day=budget.per_day / 1e6, left_bytes=round(budget.left))


def _go_on(budget: Budget) -> float:
    """How many bytes must have accrued before frames resume."""
    return budget.per_day * _GO_ON_S / DAY_S
