"""Decides which generation devices run: canaries first, all devices if those do well, a rollback if they do not.

    rollout = Rollout(path, RolloutConfig())
    rollout.begin(known)                      # generation -> digest, as found on the disk
    rollout.offer(generation, digest, facts)  # a new one is on trial
    rollout.observe("pi-1", report)           # devices' reports, as they arrive
    rollout.decide()                          # promotes, rolls back or widens; the result is in `wanted`

Nothing here communicates: `rollout_service` does. The state is on disk after every change.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from runtime_edge.base.checked_files import read_checked, write_checked
from runtime_edge.errors import UsageError
from runtime_edge.formats import strict
from runtime_edge.formats.records.release import canary_place
from runtime_edge.formats.strict import Strict
from runtime_server.releases.device_reports import LastReport, failure

PRESENT_S = 60.0
"""A device that has not reported for this long is not present."""
_MAX_BYTES = 4 << 20
_KEPT_ENTRIES = 64
_LISTED = 20
_LONGEST_HOLD_S = 24 * 3600.0

EntryStatus = Literal["trial", "stable", "superseded", "rolled back"]


@dataclass(frozen=True)
class RolloutConfig:
    """How a generation reaches all devices."""

    canary_share: float = 0.1
    """Share of the devices that take a generation first."""
    canary_from: int = 10
    """With fewer devices there are no canaries: all take it at once."""
    healthy_s: float = 60.0
    """A generation is promoted this long after its release at the earliest..."""
    healthy_share: float = 0.5
    """...and only if this share of its devices has proven it."""
    failure_share: float = 0.1
    """It is rolled back if this share of its devices cannot run it; among few devices, a single one suffices."""
    hold_s: float = 600.0
    """After a rollback nothing is released for this long, and twice as long after each further rollback in a row."""
    update_mb_per_day: float | None = None
    """What releases may cost each device; None: the devices' own budgets."""


class RolloutEntry(Strict, frozen=True, kw_only=True):
    """One released generation."""

    generation: int
    manifest: str
    released_at: float
    """Seconds since the epoch."""
    share: float
    status: EntryStatus
    reason: str = ""
    """Why it has that status."""
    held_out_before: float | None = None
    held_out_after: float | None = None
    full_bytes: int = 0
    """Size of its files for one device."""
    patch_bytes: int = 0
    """What a device that runs the previous generation fetches instead."""
    failures: dict[str, str] = msgspec.field(default_factory=dict)
    """By device, why it cannot run the generation."""


class _RolloutState(Strict, frozen=True, kw_only=True):
    entries: list[RolloutEntry] = msgspec.field(default_factory=list)
    pinned: int | None = None
    held_until: float = 0.0
    rollbacks: int = 0
    """Number of rollbacks in a row."""


@dataclass(frozen=True)
class Wanted:
    """The generations that devices should run."""

    stable: int
    trial: int | None
    """The newer generation that some or all of them should run instead."""
    share: float
    highest: int
    """Going to any older generation is a rollback."""


class Rollout:
    """The state machine. `held`, `base` and `highest` may be read from another thread than the one that changes it."""

    def __init__(self, path: Path, config: RolloutConfig, clock: Callable[[], float] = time.time) -> None:
        """Raises FormatError if the file cannot be read."""
        self.config = config
        self._path, self._clock = path, clock
        self._lock = threading.RLock()
        self._devices: dict[str, LastReport] = {}
        self._state = _read(path)

    @property
    def wanted(self) -> Wanted:
        """The generations that devices should run now."""
        stable, trial = self._one("stable"), self._one("trial")
        assert stable is not None
        return Wanted(
            stable=stable.generation,
            trial=None if trial is None else trial.generation,
            share=1.0 if trial is None else trial.share,
            highest=self.highest,
        )

    @property
    def running(self) -> set[int]:
        """Generations that devices are told to run; none before the first `begin`."""
        return {entry.generation for entry in self._state.entries if entry.status in ("stable", "trial")}

    @property
    def base(self) -> int:
        """The generation that the next one follows and is judged against."""
        wanted = self.wanted
        return wanted.stable if wanted.trial is None else wanted.trial

    @property
    def highest(self) -> int:
        """The highest generation ever released: its number and those below are never used again."""
        return max(entry.generation for entry in self._state.entries)

    def released_within(self, seconds: float) -> bool:
        """Whether the last release, or the start with the first generation, was less than `seconds` ago."""
        with self._lock:
            latest = max(entry.released_at for entry in self._state.entries)
            return 0 <= self._clock() - latest < seconds  # after the clock was set back, the difference means nothing

    @property
    def held(self) -> str:
        """Why automatic releases are on hold; empty if they are not."""
        with self._lock:
            if self._state.pinned is not None:
                return f"generation {self._state.pinned} is pinned"
            left_s = self._state.held_until - self._clock()
            if left_s > 0:
                return f"held for {left_s:.0f} s after a rollback"
            trial = self._one("trial")
            if trial is not None and trial.share < 1.0:
                return f"generation {trial.generation} is with its canaries"
            return ""

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock()

    def last_reports(self) -> dict[str, LastReport]:
        """The last report of each present device, by its name."""
        there = self.present()
        with self._lock:
            return {name: self._devices[name] for name in there if name in self._devices}

    def spent(self) -> list[tuple[float, int]]:
        """When each generation was released, seconds since the epoch, and its bytes for a device; in that order."""
        with self._lock:
            return sorted((entry.released_at, entry.patch_bytes) for entry in self._state.entries)

    def begin(self, known: Mapping[int, str]) -> int | None:
        """Start with the generations on disk, number -> digest; returns the newest one if it was never offered."""
        with self._lock:
            entries = [e for e in self._state.entries if known.get(e.generation, e.manifest) == e.manifest]
            lost = "no longer on the server's disk"
            entries = [
                replace(e, status="superseded", reason=lost)
                if e.generation not in known and e.status in ("trial", "stable")
                else e
                for e in entries
            ]
            if not any(entry.status == "stable" for entry in entries):
                bad = {entry.generation for entry in entries if entry.status == "rolled back"}
                number = max([number for number in known if number not in bad] or known)
                entries = [entry for entry in entries if entry.generation != number]
                entries.append(self._entry(number, known[number], "stable", 1.0, {}))
            self._keep(replace(self._state, entries=_sorted(entries)))
            newest = max(known)
            return newest if newest > self.highest else None

    def offer(self, generation: int, manifest: str, facts: Mapping[str, Any] | None = None) -> None:
        """Put a new generation on trial; `facts` are further fields of its `RolloutEntry`."""
        with self._lock:
            entries = [
                replace(entry, status="superseded", reason=f"generation {generation} came")
                if entry.status == "trial"
                else entry
                for entry in self._state.entries
                if entry.generation != generation
            ]
            there = self.present()
            share = 1.0 if len(there) < self.config.canary_from else _reaching(there, generation, self.config)
            entries.append(self._entry(generation, manifest, "trial", share, facts or {}))
            self._keep(replace(self._state, entries=_sorted(entries)))

    def observe(self, device: str, report: Mapping[str, Any]) -> None:
        """Process a device's report."""
        last, trial = LastReport.of(report, self._clock()), self._one("trial")
        if last is None:
            return
        with self._lock:
            self._devices[device] = last
            if trial is None:
                return
            reason = failure(report, trial.manifest)
            failures = {name: why for name, why in trial.failures.items() if name != device}
            if reason:
                failures[device] = reason
            if failures != trial.failures:
                self._change(trial.generation, failures=failures)

    def present(self) -> list[str]:
        """Names of the present devices."""
        oldest = self._clock() - PRESENT_S
        with self._lock:
            self._devices = {name: seen for name, seen in self._devices.items() if seen.at >= oldest}
            return sorted(self._devices)

    def decide(self) -> str:
        """Judge the generation on trial; returns what was done, or an empty text."""
        with self._lock:
            trial = self._one("trial")
            if trial is None:
                return ""
            # Devices that have no budget for it yet need not prove it.
            there = [name for name in self.present() if not self._waits(name, trial)]
            canaries = [name for name in there if canary_place(name, trial.generation) < trial.share]
            enough = max(1, math.ceil(self.config.failure_share * len(canaries)))
            # No other device was told to run it, whatever it reports.
            failed = [name for name in trial.failures if canary_place(name, trial.generation) < trial.share]
            if len(failed) >= enough:
                device, why = failed[0], trial.failures[failed[0]]
                others = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
                self.roll_back(None, f"{device}{others}: {why}")
                return f"generation {trial.generation} rolled back: {device}{others}: {why}"
            healthy = sum(self._devices[name].proven and self._runs(name, trial) for name in canaries)
            elapsed_s = self._clock() - trial.released_at
            if elapsed_s >= self.config.healthy_s and canaries:
                if healthy >= max(1, math.ceil(self.config.healthy_share * len(canaries))):
                    self.promote(None, f"{healthy} of {len(canaries)} devices have proven it")
                    return f"generation {trial.generation} promoted: {healthy} of {len(canaries)} devices are well"
            elif there and not canaries:
                share = _reaching(there, trial.generation, self.config)
                self._change(trial.generation, share=share)
                return f"generation {trial.generation}: no canary is there, so it goes to {share:.0%} of the devices"
            return ""

    def promote(self, generation: int | None, reason: str = "by hand") -> int:
        """Make everybody run the generation on trial, or any other one. Returns which. Raises UsageError."""
        with self._lock:
            number = self._number(generation, "trial", "no generation is on trial; name one")
            self._make_stable(number, "superseded", f"generation {number} was promoted", reason)
            self._keep(replace(self._state, pinned=None, held_until=0.0, rollbacks=0))
            return number

    def roll_back(self, generation: int | None, reason: str = "by hand") -> int:
        """Go back to the stable generation or, if that runs already, to the one before it; a pin follows.

        Raises UsageError.
        """
        with self._lock:
            if generation is None and self._one("trial") is None:
                stable = self.wanted.stable
                healthy = [e.generation for e in self._state.entries if e.status == "superseded"]
                generation = max((number for number in healthy if number < stable), default=None)
            number = self._number(generation, "stable", "there is nothing to go back to")
            if number == self.base:
                raise UsageError(f"generation {number} already runs; there is nothing to go back to")
            self._make_stable(number, "rolled back", reason, f"gone back to: {reason}")
            hold_s = min(self.config.hold_s * 2**self._state.rollbacks, _LONGEST_HOLD_S)
            held_until, rollbacks = self._clock() + hold_s, self._state.rollbacks + 1
            pinned = None if self._state.pinned is None else number
            self._keep(replace(self._state, pinned=pinned, held_until=held_until, rollbacks=rollbacks))
            return number

    def pin(self, generation: int | None) -> int:
        """Make everybody run this generation until `unpin`. Returns which. Raises UsageError."""
        with self._lock:
            number = self.base if generation is None else self._number(generation, "stable", "")
            self._make_stable(number, "superseded", f"generation {number} was pinned", "by hand")
            self._keep(replace(self._state, pinned=number))
            return number

    def unpin(self) -> None:
        """Allow automatic releases again, immediately."""
        with self._lock:
            self._keep(replace(self._state, pinned=None, held_until=0.0, rollbacks=0))

    def listing(self) -> list[dict[str, Any]]:
        """The last entries with the devices that run them, newest first."""
        there = self.present()
        rows = []
        with self._lock:
            for entry in self._state.entries[: -_LISTED - 1 : -1]:
                running = [name for name in there if self._runs(name, entry)]
                waiting = {name: self._devices[name].until for name in there if self._waits(name, entry)}
                proven = sum(self._devices[name].proven for name in running)
                rows.append(
                    {
                        **msgspec.to_builtins(entry),
                        "failures": dict(list(entry.failures.items())[:_LISTED]),
                        "pinned": entry.generation == self._state.pinned,
                        "waiting": dict(list(waiting.items())[:_LISTED]),
                        "devices_waiting": len(waiting),
                        "devices": len(running),
                        "devices_proven": proven,
                    }
                )
        return rows

    def _make_stable(self, number: int, others: EntryStatus, why_others: str, why: str) -> None:
        """Make one generation stable; newer ones on trial or stable get `others`, older ones are superseded."""
        leaving = {entry.generation for entry in self._state.entries if entry.status in ("trial", "stable")} - {number}
        entries = []
        for entry in self._state.entries:
            if entry.generation == number:
                entry = replace(entry, status="stable", share=1.0, reason=why)
            elif entry.generation in leaving:
                newer = entry.generation > number
                status: EntryStatus = others if newer else "superseded"
                entry = replace(entry, status=status, reason=why_others if newer else f"generation {number} followed")
            entries.append(entry)
        self._keep(replace(self._state, entries=entries))

    def _number(self, generation: int | None, status: EntryStatus, otherwise: str) -> int:
        if generation is None:
            entry = self._one(status)
            if entry is None:
                raise UsageError(otherwise)
            return entry.generation
        if not any(entry.generation == generation for entry in self._state.entries):
            raise UsageError(f"generation {generation} has never been released")
        return generation

    def _waits(self, device: str, entry: RolloutEntry) -> bool:
        """Whether a device has no budget for a generation yet."""
        waits = self._devices[device].waits
        return waits is not None and waits.manifest == entry.manifest

    def _runs(self, device: str, entry: RolloutEntry) -> bool:
        return self._devices[device].bundle == entry.manifest

    def _one(self, status: EntryStatus) -> RolloutEntry | None:
        return next((entry for entry in self._state.entries if entry.status == status), None)

    def _entry(
        self, number: int, manifest: str, status: EntryStatus, share: float, facts: Mapping[str, Any]
    ) -> RolloutEntry:
        return RolloutEntry(
            generation=number, manifest=manifest, released_at=self._clock(), share=share, status=status, **facts
        )

    def _change(self, generation: int, **fields: Any) -> None:
        entries = [replace(e, **fields) if e.generation == generation else e for e in self._state.entries]
        self._keep(replace(self._state, entries=entries))

    def _keep(self, state: _RolloutState) -> None:
        """Write to disk first: a restarted server must not release what has been rolled back."""
        entries = state.entries[-_KEPT_ENTRIES:]
        entries = [e for e in state.entries if e.status in ("stable", "trial") and e not in entries] + entries
        state = replace(state, entries=entries)
        if state != self._state:
            write_checked(self._path, msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
            self._state = state


def _read(path: Path) -> _RolloutState:
    taken = ", and the newest generation is taken as stable"
    data = read_checked(path, _MAX_BYTES, fix=taken)
    if data is None:
        return _RolloutState()
    return strict.decode(data, _RolloutState, str(path), _MAX_BYTES, fix=f"; remove the file{taken}")


def _sorted(entries: list[RolloutEntry]) -> list[RolloutEntry]:
    return sorted(entries, key=lambda entry: entry.generation)


def _reaching(devices: list[str], generation: int, config: RolloutConfig) -> float:
    """The canary share, or more if needed to reach at least one present device."""
    nearest = min(canary_place(name, generation) for name in devices)
    return min(1.0, max(config.canary_share, math.nextafter(nearest, 2.0)))
