"""Measures a device on a constant link, in simulated time: its estimate, and how often its cut changes.

    python -m tools.steady_link

The device's own bandwidth estimate and splitter run; only the link and the clock are simulated. Answers may come in
bunches, as over Wi-Fi that saves power, or after the pieces of a download that shares the link.
"""

from __future__ import annotations

import heapq
import itertools
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from runtime_edge.formats.records.table import LOCAL, SplitterTable
from runtime_edge.policy.splitter import Splitter
from runtime_edge.transport.bandwidth import BandwidthEstimator
from runtime_edge.transport.bandwidth_probe import (
    CONFIRMATIONS,
    FillerAllowance,
    confirming_bytes,
    filler_bytes,
    probe_is_due,
)
from runtime_edge.transport.protocol import FRAME_OVERHEAD_BYTES
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder, new_encoder, save_checkpoint
from tools.benchmarks import Section, publish
from tools.reaction import PAIR_JITTER_S

PIECE_BYTES = 128 << 10
"""Bytes of a download that the broker sends at once."""
KNOWN_AFTER_S = 10.0
_UNCERTAINTY, _CPU = 0.4, 0.1
_PING_BYTES = 160
_DEADLINE_S = 1.0
_AT_ONCE_S = 0.05


@dataclass(frozen=True)
class SteadyLink:
    """A link whose properties do not change."""

    mbps: float
    rtt_ms: float = 40.0
    jitter_ms: float = 15.0
    bunch_s: float = 0.0
    """Answers are held until the next multiple of this."""
    download: tuple[float, float] = (math.inf, math.inf)
    """When a download that shares the way back begins and ends."""
    late_answers: float = 0.0
    """Share of frames that the broker stores but the server does not answer in time."""


@dataclass
class SteadyRun:
    """One device on one link; without a table it sends frames of `frame_bytes`."""

    link: SteadyLink
    seed: int
    frame_bytes: int = 0
    table: SplitterTable | None = None
    cut_names: tuple[str, ...] = ()
    hop_s: float = 0.5
    now: float = 0.0
    estimates: list[tuple[float, float]] = field(default_factory=list)
    """Time and Mbit/s, at each window."""
    cuts: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self._uplink = BandwidthEstimator(now=lambda: self.now, shared=self._since_download_s)
        self._splitter = self.table and Splitter(self.table, self.cut_names, seed=self.seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._filler = FillerAllowance()
        self._free_s = self._last_back_s = 0.0
        self._in_flight = 0
        self._jitter = -math.inf, 0.0

    def run(self, seconds: float) -> SteadyRun:
        """Simulate `seconds`."""
        for index in range(int(seconds / self.hop_s)):
            self._until(index * self.hop_s)
            self.estimates.append((self.now, self._uplink.uplink_mbits))
            size, worth = self.frame_bytes, 0.0
            if self._splitter is not None and self.table is not None:
                chosen = self._splitter.choose(_UNCERTAINTY, _CPU, self._uplink.uplink_mbits, self._uplink.rtt_ms)
                if not chosen.explored:
                    self.cuts.append((self.now, chosen.cut))
                worth = self._splitter.filler_worth()
                size = 0 if chosen.cut == LOCAL else self.table.action_bytes[chosen.action] + FRAME_OVERHEAD_BYTES
            self._window(size, worth)
        return self

    def worst_factor(self) -> float:
        """The largest factor by which the estimate was off, after it had time to settle."""
        off = [mbps / self.link.mbps for time_s, mbps in self.estimates if time_s >= KNOWN_AFTER_S]
        return max(max(off), 1 / min(off))

    def most_changes_a_minute(self) -> int:
        """Changes of cut in the worst minute, after the estimate had time to settle."""
        known = [(time_s, cut) for time_s, cut in self.cuts if time_s >= KNOWN_AFTER_S]
        times = [time_s for (_, a), (time_s, b) in itertools.pairwise(known) if a != b]
        return max((sum(one <= other < one + 60.0 for other in times) for one in times), default=0)

    def _window(self, size: int, worth: float) -> None:
        start_s, uplink, alone = self.now, self._uplink, not self._in_flight
        if size and alone and uplink.wants_ping(size):
            back_s = self._back(self._sent(start_s, _PING_BYTES))
            self._at(back_s, lambda: uplink.observe_round_trip(back_s - start_s))
        if size:
            if alone:
                uplink.sending(size)
            acked_s = self._back(self._sent(start_s, size))
            self._in_flight += 1
            self._at(acked_s, lambda: self._stored(size, acked_s - start_s, alone))
            if self._random.random() < self.link.late_answers:
                self._at(start_s + _DEADLINE_S, lambda: uplink.timeout(_DEADLINE_S, stored=acked_s <= self.now))
        due = alone and probe_is_due(start_s - uplink.measured_at, bool(size), capped=False)
        filler = filler_bytes(uplink.uplink_mbits, worth, self.hop_s, size) if due else 0
        if self._filler.allows(filler, worth):
            self._probe(start_s, filler, size)

    def _stored(self, size: int, seconds: float, alone: bool) -> None:
        self._in_flight -= 1
        if alone:
            self._uplink.observe(size, seconds)

    def _probe(self, start_s: float, filler: int, before: int) -> None:
        uplink = self._uplink
        for confirmations in range(CONFIRMATIONS + 1):
            first_s = self._back(self._sent(start_s, _PING_BYTES))
            second_s = self._back(self._sent(start_s, filler + _PING_BYTES))
            trip_s, pair_s = first_s - start_s, second_s - first_s
            if confirmations == CONFIRMATIONS or not uplink.needs_confirmation(filler, pair_s, confirmations):
                break
            start_s, before, filler = second_s, 0, confirming_bytes(filler)
        sent = filler
        self._at(second_s, lambda: uplink.observe_pair(sent, trip_s, pair_s, before))

    def _sent(self, start_s: float, size: int) -> float:
        """When `size` bytes sent from `start_s` have arrived."""
        rate = self.link.mbps * float(np.exp(self._random.normal(0, 0.05)))
        self._free_s = max(start_s, self._free_s) + size * 8 / 1e6 / rate
        return self._free_s

    def _back(self, sent_s: float) -> float:
        """When the answer arrives; answers keep their order."""
        link = self.link
        arrives_s = sent_s + link.rtt_ms / 1e3 + self._late(sent_s)
        if link.bunch_s:
            arrives_s = math.ceil(arrives_s / link.bunch_s) * link.bunch_s
        began_s, ended_s = link.download
        if began_s <= arrives_s < ended_s:
            piece_s = PIECE_BYTES * 8 / 1e6 / link.mbps
            arrives_s = began_s + math.ceil((arrives_s - began_s) / piece_s) * piece_s
        self._last_back_s = max(arrives_s, self._last_back_s)
        return self._last_back_s

    def _late(self, sent_s: float) -> float:
        """Jitter of an answer, which is almost the same for answers in quick succession."""
        wide_s, (before_s, late_s) = self.link.jitter_ms / 1e3, self._jitter
        if sent_s - before_s < _AT_ONCE_S:
            late_s += self._random.uniform(-PAIR_JITTER_S, PAIR_JITTER_S)
        else:
            late_s = self._random.uniform(-wide_s, wide_s)
        self._jitter = sent_s, late_s
        return late_s

    def _since_download_s(self) -> float:
        began_s, ended_s = self.link.download
        return math.inf if self.now < began_s else max(0.0, self.now - ended_s)

    def _at(self, time_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_s, next(self._order), happen))

    def _until(self, time_s: float) -> None:
        while self._events and self._events[0][0] <= time_s:
            self.now, _, happen = heapq.heappop(self._events)
            happen()
        self.now = time_s


LINKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "download": {"download": (20.0, 60.0)},
    "late": {"late_answers": 0.3},
    "bunched": {"bunch_s": 0.093},
}
"""Kinds of constant links, by name."""
_MBPS = (0.5, 1.0, 2.0, 4.0)
_SEEDS, _RUN_S = 8, 180.0


def measure(work: Path) -> Section:
    """Measure every link, with ResNet-18's table for a Raspberry Pi 4."""
    module, config = new_encoder("resnet18")
    save_checkpoint("resnet18", config, module, work / "encoder.pt")
    options = CompileOptions([load_target("rpi4")], calibration_windows=4, formats=("onnx",))
    bundle = compile_encoder(load_encoder(work / "encoder.pt"), options, work / "bundle")
    table = msgspec.structs.replace(bundle.table("rpi4"), probe_rate=0.0)
    cuts = tuple(cut.name for cut in bundle.manifest.info.cuts)
    section = Section("lean", "A link that does not change", "python -m tools.steady_link", part="link")
    for name, what in LINKS.items():
        links = [SteadyLink(mbps, **what) for mbps in _MBPS]
        runs = [
            SteadyRun(link, seed, table=table, cut_names=cuts).run(_RUN_S) for link in links for seed in range(_SEEDS)
        ]
        about = f"over {len(runs)} runs of {_RUN_S:g} s, {_MBPS[0]:g} to {_MBPS[-1]:g} Mbit/s, ResNet-18's table"
        worst = max(run.worst_factor() for run in runs)
        changes = max(run.most_changes_a_minute() for run in runs)
        section.add(f"link_factor.{name}", worst, "at most 2", f"estimate against link after 10 s, worst {about}")
        section.add(f"link_changes.{name}", changes, "at most 1", "changes of cut in the worst minute of them")
    return section


def main() -> None:
    """Measure and publish."""
    with tempfile.TemporaryDirectory(prefix="ssc-bench-") as work:
        publish(measure(Path(work)))


if __name__ == "__main__":
    main()
