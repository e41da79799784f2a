"""A server's page with devices that nobody runs: any number of them, with whatever they say."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
from reports import REPORT, Clock
from waiting import PATIENCE_S

from runtime_edge.formats.records.head import Head, Validation
from runtime_edge.formats.wire import WIRE_ENCODINGS, FrameHeader
from runtime_server.labels.corrections import Corrections
from runtime_server.labels.moments import Moment
from runtime_server.labels.sent_windows import SentWindow
from runtime_server.suffix.frame_codecs import FrameCodecs
from runtime_server.telemetry.fleet import Fleet
from runtime_server.web.page_data import PageData
from runtime_server.web.page_server import PageServer, WebAddress
from runtime_server.web.sounds import Sounds

T = TypeVar("T")
LABELS = ("dog_bark", "rain", "rooster", "glass", "alarm")
CUTS = ("waveform", "layer1", "layer2", "local")
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def head(labels: tuple[str, ...] = LABELS) -> Head:
    found = Validation(
        split="5 folds by clip", windows=1200, groups=120, accuracy=0.914, group_accuracy=0.958, average_precision=0.941
    )
    return Head(
        encoder="efficientat:mn04", embedding_dim=2, generations=(3, 4), labels=labels, scores_by="sigmoid",
        thresholds=(0.5,) * len(labels), validation=found, created_by="ssc server label", model=None, temperature=1.0,
        bias=bytes(4 * len(labels)), weights=bytes(8 * len(labels)),
    )  # fmt: skip


def quality(loss: float, accuracy: float) -> dict[str, Any]:
    return {"loss": loss, "alignment": 0.2, "uniformity": -2.5, "probe_accuracy": accuracy}


def judged(before: int, after: int) -> dict[str, Any]:
    """What a release would make of the one head."""
    score = {"head": "rpi4", "clips": 120, "before": before, "after": after, "at_95": -1.0}
    return {"judged": [score], "without_clips": []}


def status(devices: int) -> dict[str, Any]:
    """What a server that trains says of itself."""
    losses = [
        {"step": step, "seconds": 0.21, "total": 5.2 * math.exp(-step / 300) + 1.1 + 0.1 * math.sin(step)}
        for step in range(0, 1000, 5)
    ]
    release = {
        "generation": 4, "status": "trial", "reason": "", "share": 0.25, "devices": devices // 4, "devices_proven": 3,
        "devices_waiting": 1, "held_out_before": 1.42, "held_out_after": 1.31, "pinned": False,
        "released_at": time.time() - 7200,
    }  # fmt: skip
    return {
        "encoder": "efficientat:mn04", "generation": 3, "uptime_s": 93_600.0, "counters": {}, "troubles": [],
        "windows": {f"pi-{number:03}": 11_000 + number for number in range(devices)}, "training_steps": 995,
        "losses": losses, "energy": {"steps": 995, "joules_a_step": 9.3, "above_idle_a_step": 4.1, "source": "rapl"},
        "releases": [
            {"generation": 4, "released": True, "steps": 600, "reason": "", "seconds": 20.0,
             "before": quality(1.42, 0.81), "after": quality(1.31, 0.84), "heads": judged(112, 114)},
            {"generation": 5, "released": False, "steps": 900, "reason": "the linear probe would fall", "seconds": 21.0,
             "before": quality(1.31, 0.84), "after": quality(1.29, 0.79), "heads": judged(114, 109)},
        ],
        "rollout": {
            "releases": [release, release | {"generation": 3, "status": "stable", "devices": devices, "share": 1.0}],
            "held": "", "paced": "",
        },
    }  # fmt: skip


def report(number: int, minute: int) -> dict[str, Any]:
    """Of one device after so many minutes: its link grows and shrinks, and its cuts with it."""
    swing = 0.5 + 0.5 * math.sin(minute / 40 + number / 9)
    mbps = round(0.08 * 100**swing, 3)
    counts = dict.fromkeys(CUTS, 0)
    for past in range(minute + 1):
        then = 0.5 + 0.5 * math.sin(past / 40 + number / 9)
        counts[CUTS[min(int(4 * (1 - then)), 3)]] += 120
    captured = sum(counts.values())
    return REPORT | {
        "cuts": counts, "windows_captured": captured, "windows_acked": captured - counts["local"],
        "finished": {"server": captured - counts["local"], "device": counts["local"]},
        "latency_ms": {cut: {"p50": 18.0 + number % 7, "p95": 61.5, "windows": count} for cut, count in counts.items()},
        "temperature_c": 44.0 + number % 23, "throttled": number % 23 > 20, "windows_dropped": 0, "errors": {},
        "windows_spooled": 40 * (number % 11 == 0), "trouble": None if number % 17 else "broker: no answer for 12 s",
        "state": {"bandwidth_mbps": mbps, "rtt_ms": 22.0, "battery": 0.83 if number % 5 else None},
        "traffic": [[9, 9, 0], [1_800_000, 240_000, 90_000, 3600], [1_290_000_000, 170_000_000, 64_000_000, 2_592_000]],
    }  # fmt: skip


RATE, WINDOW, HOP = 16_000, 16_000, 8000
FRONT_END = SimpleNamespace(sample_rate=RATE, window_samples=WINDOW, hop_samples=HOP)
CODECS = FrameCodecs(
    SimpleNamespace(manifest=SimpleNamespace(info=SimpleNamespace(cuts=[SimpleNamespace(shape=(1, WINDOW))])))
)


def audio(label: str, seconds: float) -> np.ndarray:
    """Something to hear, other for every label."""
    rng, time_s = np.random.default_rng(len(label)), np.arange(int(seconds * RATE)) / RATE
    pitch = 300 + 250 * len(label)
    tone = np.sin(2 * np.pi * (pitch * time_s + 120 * np.sin(3 * time_s)))
    bursts = np.exp(-6 * (time_s % (0.35 + 0.05 * len(label))))
    return (0.35 * tone * bursts + 0.002 * rng.standard_normal(len(time_s))).astype(np.float32)


def sent(device: str, label: str, moment: Moment) -> list[SentWindow]:
    """What a device has sent of a moment: every third nothing, every other third activations alone."""
    kind = int(device[3:] or 0) % 3
    windows = int((moment.until - moment.since) / (HOP / RATE)) + 1 if kind != 2 else 0
    heard, found = audio(label, windows * HOP / RATE + 1), []
    for index in range(windows):
        samples = heard[index * HOP :][:WINDOW]
        payload = b"activation" if kind else np.rint(samples * 32767).astype("<i2").tobytes()
        ended = int((moment.since + index * HOP / RATE) * 1e9)
        encoding = WIRE_ENCODINGS.index("float16" if kind else "pcm16")
        found.append(SentWindow("b0", FrameHeader(index, ended, 3, kind, encoding, False, 0.5), payload))
    return found


class Showroom:
    """A fleet, its page, and the event loop that both need, in a thread of their own."""

    def __init__(self, state: Path, web: str = "127.0.0.1:0", **options: int) -> None:
        self.clock = Clock()
        self.clock.now = time.time()
        self.fleet = Fleet(self.clock)
        self.heads = {"rpi4": head()}
        self.corrections = Corrections(state / "corrections")
        self.troubles: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

        async def start() -> PageServer:
            sounds = Sounds(
                lambda: self.fleet.events,
                self._sent,
                self._lent,
                FRONT_END,
                lambda: CODECS,
                self.corrections,
                self.clock,
            )
            data = PageData(self.fleet, self._status, self._heads, sounds)
            return PageServer(WebAddress.parse(web), state, data, **options)

        try:
            self.page = self.run(start)
        except BaseException:
            self._end()
            raise

    async def _status(self) -> dict[str, Any]:
        return status(len(self.fleet.devices)) | {"troubles": self.troubles}

    async def _sent(self, moment: Moment) -> list[SentWindow]:
        (label,) = {one.label for one in self.fleet.events if (one.device, one.since) == (moment.device, moment.since)}
        return sent(moment.device, label, moment)

    async def _lent(self, moment: Moment) -> list[SentWindow]:
        return []

    async def _heads(self) -> dict[str, Head]:
        return self.heads

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """On the loop that the fleet belongs to."""

        async def worked() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(worked(), self._loop).result(PATIENCE_S)

    def do(self, work: Callable[[], T]) -> T:
        """The same of what need not be awaited."""

        async def done() -> T:
            return work()

        return self.run(done)

    def devices(self, count: int, minutes: int = 1) -> None:
        """So many devices, which have reported every minute until now."""

        def fill() -> None:
            self.clock.now -= 60.0 * (minutes - 1)
            for minute in range(minutes):
                self.clock.now += 60.0 * (minute > 0)
                for number in range(count):
                    self.fleet.report(f"pi-{number:03}", report(number, minute))

        self.do(fill)

    def label(self, device: str, event: str, label: str, score: float = 0.93) -> None:
        """A label goes on or off."""
        now = self.clock.now
        fields = {"event": event, "version": 2, "device": device, "label": label, "score": score, "since": now - 2.5}
        data = json.dumps(fields | {"time": now, "window": 7, "head_generation": 4}).encode()
        self.do(lambda: self.fleet.event(device, data))

    def update(self, device: str, **fields: object) -> None:
        """An event about an update."""
        data = json.dumps({"version": 2, "device": device, **fields}).encode()
        self.do(lambda: self.fleet.event(device, data))

    def close(self) -> None:
        self.run(self.page.close)
        self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()
