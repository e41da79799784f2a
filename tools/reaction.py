"""Measures how long a device takes to change its choice after a step of its link or load, in simulated time.

The device's own bandwidth estimate and splitter run; only the link, the load and the clock are simulated: frames queue
on an uplink with a given rate, round trips jitter, and decisions are made every half second.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from runtime_edge.formats.records.table import SplitterTable
from runtime_edge.policy.reward import MAX_LOAD
from runtime_edge.policy.splitter import Splitter
from runtime_edge.transport.bandwidth import BandwidthEstimator
from runtime_edge.transport.bandwidth_probe import CONFIRMATIONS, FillerAllowance, confirming_bytes, filler_bytes
from runtime_edge.transport.protocol import FRAME_OVERHEAD_BYTES

STEP_AT_S = 20.0
END_S = 36.0
JITTER_S, PAIR_JITTER_S = 0.015, 0.005
UNCERTAINTY = 0.4
STANDS_S = 3.0
ACCURACY = 1.25
"""Factor by which an estimate of the uplink may be off."""
TOLERANCE = 0.25
"""Difference in reward that still counts as good, worth 10 ms of latency."""


@dataclass(frozen=True)
class StepConditions:
    """Conditions before or after the step."""

    mbps: float
    cpu: float
    rtt_ms: float


@dataclass
class SteppedDevice:
    """One device through one step; `run` gives (time, cut) of every decision."""

    table: SplitterTable
    cut_names: Sequence[str]
    before: StepConditions
    after: StepConditions
    step_s: float
    seed: int
    bunched: float = 0.0
    """Share of bandwidth probes whose packets are bunched on the way, and so arrive as if over a link without limit."""
    now: float = 0.0
    _events: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self._uplink = BandwidthEstimator(now=lambda: self.now)
        self._splitter = Splitter(self.table, self.cut_names, seed=self.seed)
        self._filler = FillerAllowance()
        self._free_s = 0.0

    def run(self) -> list[tuple[float, str]]:
        """Decisions from the start to END_S."""
        chosen, hop_s = [], self.table.hop_s
        for index in range(int(END_S / hop_s)):
            start_s = index * hop_s
            self._learn_until(start_s)
            # The splitter sees the mean load since the last decision.
            load = np.mean([self._at(start_s - share * hop_s).cpu for share in np.arange(0.05, 1.0, 0.1)])
            load = float(np.clip(load + self._random.normal(0, 0.02), 0, 1))
            decision = self._splitter.choose(UNCERTAINTY, load, self._uplink.uplink_mbits, self._uplink.rtt_ms)
            chosen.append((start_s, decision.cut))
            self._send(start_s, decision.action, load)
        return chosen

    def _at(self, time_s: float) -> StepConditions:
        return self.before if time_s < self.step_s else self.after

    def _send(self, start_s: float, action: int, load: float) -> None:
        costs = self.table.costs[action]
        ready_s = start_s + costs.device_ms / 1e3 / (1 - min(load, MAX_LOAD))
        alone = ready_s >= self._free_s
        size = costs.bytes + FRAME_OVERHEAD_BYTES
        sent_s = self._transfer(max(ready_s, self._free_s), size)
        self._free_s = sent_s
        rtt_s = self._at(sent_s).rtt_ms / 1e3
        acked_s = sent_s + rtt_s + self._random.uniform(-JITTER_S, JITTER_S)
        if not alone:
            return
        self._bandwidth_probe(ready_s, sent_s, size, rtt_s)
        uplink, seconds = self._uplink, acked_s - ready_s
        if uplink.wants_ping(size):
            trip_s = self._at(ready_s).rtt_ms / 1e3 + self._random.uniform(-JITTER_S, JITTER_S)
            self._events.append((ready_s + trip_s, lambda: uplink.observe_round_trip(trip_s)))
        self._events.append((ready_s, lambda: uplink.sending(size)))
        deadline_s = self.table.uplink.deadline_ms / 1e3
        if seconds > deadline_s:
            self._events.append((ready_s + deadline_s, lambda: uplink.timeout(deadline_s)))
        self._events.append((acked_s, lambda: self._arrived(size, seconds, rtt_s)))

    def _arrived(self, size: int, seconds: float, rtt_s: float) -> None:
        """Observe a frame's time, as `Delivery` does if answers acknowledge: a probe checks a surprising one."""
        uplink = self._uplink
        if not uplink.learns_little(size) or not uplink.is_surprise(size, seconds):
            uplink.observe(size, seconds)
            return
        uplink.dismiss()
        probed_s, trip_s, pair_s = self._probe_pair(self.now, size, rtt_s)
        self._events.append((probed_s, lambda: uplink.observe_pair(size, trip_s, pair_s)))

    def _bandwidth_probe(self, ready_s: float, sent_s: float, size: int, rtt_s: float) -> None:
        """Send a bandwidth probe after a frame, and use its result once it is over."""
        uplink = self._uplink
        worth = self._splitter.filler_worth()
        filler, before = filler_bytes(uplink.uplink_mbits, worth, self.table.hop_s, size), size
        if not self._filler.allows(filler, worth):
            return
        probed_s, trip_s, pair_s = self._probe_pair(sent_s, filler, rtt_s)
        trip_s += sent_s - ready_s
        for confirmations in range(CONFIRMATIONS):
            if not uplink.needs_confirmation(filler, pair_s, confirmations):
                break
            before, filler = 0, confirming_bytes(filler)
            probed_s, trip_s, pair_s = self._probe_pair(probed_s, filler, rtt_s)
        self._events.append((probed_s, lambda: uplink.observe_pair(filler, trip_s, pair_s, before)))

    def _probe_pair(self, start_s: float, filler: int, rtt_s: float) -> tuple[float, float, float]:
        """When a bandwidth probe is over, its round trip time, and how much later the second answer came."""
        trip_s = rtt_s + self._random.uniform(-JITTER_S, JITTER_S)
        if self.bunched and self._random.random() < self.bunched:
            return start_s + trip_s, trip_s, 0.0
        transfer_s = self._transfer(start_s, filler) - start_s
        pair_s = max(0.0, transfer_s + self._random.uniform(-PAIR_JITTER_S, PAIR_JITTER_S))
        return start_s + trip_s + pair_s, trip_s, pair_s

    def _transfer(self, start_s: float, size: int) -> float:
        """When `size` bytes sent from `start_s` have arrived; the rate varies by 5 % and changes at the step."""
        left, time_s = size * 8 / 1e6, start_s
        while left > 0:
            rate = self._at(time_s).mbps * float(np.exp(self._random.normal(0, 0.05)))
            until_s = self.step_s if time_s < self.step_s else np.inf
            span_s = min(left / rate, 0.1, max(until_s - time_s, 1e-6))
            left, time_s = left - rate * span_s, time_s + span_s
        return time_s

    def _learn_until(self, time_s: float) -> None:
        while due := [event for event in self._events if event[0] <= time_s]:
            earliest = min(due, key=lambda event: event[0])
            self._events.remove(earliest)
            self.now, happen = earliest
            happen()
        self.now = time_s


def reaction_s(device: SteppedDevice, decisions: Sequence[tuple[float, str]]) -> float | None:
    """Seconds from the step until a good cut is chosen and kept for three seconds; None if the old cut is good.

    A cut is good if it is within TOLERANCE of the best in the row of the true conditions, or of conditions within the
    accuracy of an estimate.
    """
    table, after = device.table, device.after
    good = set()
    for share in (1 / ACCURACY, 1.0, ACCURACY):
        state = {"cpu": after.cpu, "bandwidth_mbps": share * after.mbps, "rtt_ms": after.rtt_ms}
        q = table.q[table.lookup({**state, "uncertainty": UNCERTAINTY})]
        good |= {cut for cut, value in zip(table.actions, q, strict=True) if value >= max(q) - TOLERANCE}
    before = [cut for time_s, cut in decisions if time_s < device.step_s]
    if before[-1] in good:
        return None
    later = [(time_s, cut) for time_s, cut in decisions if time_s >= device.step_s]
    for time_s, _ in later:
        if all(cut in good for t, cut in later if time_s <= t <= time_s + STANDS_S):
            return time_s - device.step_s
    return END_S - device.step_s


def changes_while_steady(decisions: Sequence[tuple[float, str]]) -> int:
    """The most changes of cut within any three seconds of the steady part before the step."""
    steady = [(t, cut) for t, cut in decisions if 8.0 <= t < STEP_AT_S]
    times = [t for (_, a), (t, b) in itertools.pairwise(steady) if a != b]
    return max((sum(t <= u < t + 3.0 for u in times) for t in times), default=0)
