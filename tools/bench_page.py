"""Measures what the page costs a server: its share of a processor, and whether its memory grows.

    python -m tools.bench_page [--minutes 30] [--no-publish]

A real server (`ssc server run --web`) with its broker hears a fleet of 200 devices: each reports every minute, and 100
times a minute a label goes on or off, with the sound as four windows of 16-bit audio. For the first five minutes nobody
looks. Then three pages are open: each follows the stream of changes and asks for the spectrogram of every new event, as
the page does for those that are on the screen. What the server takes more than before is the page's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import psutil
from nats.aio.client import Client

from runtime_edge.base.aio import cancel_all
from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.codec import to_pcm
from runtime_edge.formats.results import VERSION, LabelEvent
from runtime_edge.formats.wire import encode_frame
from streamsplit_compile.bundle.soundscape import soundscape
from tools.bench_server import ServerProcess
from tools.benchmarks import Section, publish, show
from tools.fleet import prepare

DEVICES, REPORT_S, EVENT_S, PAGES = 200, 60.0, 0.6, 3
_ALONE_SHARE = 1 / 6
"""Of the time, before anybody looks."""
_WINDOWS = 4
_LOOK_S, _PATIENCE_S = 1.0, 30.0


class BusyFleet:
    """What 200 devices publish."""

    def __init__(self, bundle: Bundle, client: Client) -> None:
        self._client, self._info = client, bundle.manifest.info
        front = self._info.front_end
        self._audio = soundscape(120.0, front.sample_rate, seed=0)
        self._names = [f"pi-{number:03d}" for number in range(DEVICES)]
        self._next = dict.fromkeys(self._names, 0)
        self._on: dict[str, float] = {}

    async def report_forever(self) -> None:
        """Each device reports every minute, all at different times."""
        while True:
            for place, name in enumerate(self._names):
                report = {"device": name, "target": "rpi4", "boot": f"boot-{place}", "software": "0.2.0",
                          "generation_end": 1, "windows_captured": self._next[name], "windows_acked": self._next[name],
                          "latency_ms": {"waveform": {"p50": 80.0, "p95": 120.0, "windows": self._next[name]}},
                          "state": {"bandwidth_mbps": 2.0 + place % 7, "rtt_ms": 40.0, "cpu": 0.2}}  # fmt: skip
                await self._client.publish(
                    subjects.bucket_subject(subjects.PRESENCE, name), json.dumps(report).encode()
                )
                await asyncio.sleep(REPORT_S / DEVICES)

    async def hear_forever(self) -> None:
        """Labels go on and off in turn, with the sound behind each."""
        turn = 0
        while True:
            name = self._names[(turn // 2) % DEVICES]
            await self._heard(name, "on" if turn % 2 == 0 else "off", f"sound {turn // 2 % 12}")
            turn += 1
            await asyncio.sleep(EVENT_S)

    async def _heard(self, name: str, kind: Literal["on", "off"], label: str) -> None:
        front = self._info.front_end
        for _ in range(_WINDOWS):
            window = self._next[name]
            self._next[name] += 1
            start = (window * front.hop_samples) % (len(self._audio) - front.window_samples)
            payload = to_pcm(self._audio[start : start + front.window_samples]).tobytes()
            frame = encode_frame(window, time.time_ns(), self._info.generation, 0, "pcm16", False, 0.5, payload)
            headers = subjects.envelope(subjects.message_id(name, "boot-0", window), name)
            await self._client.publish(subjects.frames(name), frame, headers=headers)
        now = time.time()
        since = self._on.setdefault(name, now)
        event = LabelEvent(event=kind, version=VERSION, device=name, label=label, score=0.9, since=since, time=now,
                           window=self._next[name], head_generation=1)  # fmt: skip
        if kind == "off":
            del self._on[name]
        await self._client.publish(subjects.events(name), msgspec.json.encode(event))


def look(address: str, seen: list[float], until: float) -> None:
    """An open page: follow the changes, and ask for the picture of each new event; `seen` gets the seconds."""

    def get(view: str) -> Any:
        with urllib.request.urlopen(f"{address}api/v1/{view}", timeout=_PATIENCE_S) as answer:
            return json.load(answer)

    for view in ("server", "devices", "events"):
        get(view)
    with urllib.request.urlopen(f"{address}api/v1/stream", timeout=_PATIENCE_S) as stream:
        for line in stream:
            if time.monotonic() > until:
                return
            for event in json.loads(line[6:]).get("events", ()) if line.startswith(b"data: {") else ():
                began = time.monotonic()
                if "levels" in get(f"events/{event['number']}/picture"):
                    seen.append(time.monotonic() - began)


class Watched:
    """Resident memory and processor time of a process over time."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._began = process, time.monotonic()
        self.rows: list[tuple[float, float, float]] = []
        """Seconds since the start, MB (1e6 bytes), processor seconds."""

    async def watch_forever(self) -> None:
        """Look every few seconds."""
        while True:
            used = self._process.cpu_times()
            row = time.monotonic() - self._began, self._process.memory_info().rss / 1e6, used.user + used.system
            self.rows.append(row)
            await asyncio.sleep(_LOOK_S)

    def share(self, since_s: float, until_s: float) -> float:
        """Share of one processor between two times."""
        rows = [row for row in self.rows if since_s <= row[0] <= until_s]
        return (rows[-1][2] - rows[0][2]) / (rows[-1][0] - rows[0][0])

    def memory_mb(self, since_s: float, until_s: float) -> float:
        """Median memory between two times."""
        return statistics.median(row[1] for row in self.rows if since_s <= row[0] <= until_s)


async def measured(work: Path, minutes: float) -> Section:
    """The section, after this many minutes. Raises LinkError."""
    encoder, path = prepare(work, "mobilenet_v3_small")
    server, end_s, seen = ServerProcess(work, encoder, path, options=("--web", "0")), 60 * minutes, list[float]()
    async with server.running() as process:
        client, watched = Client(), Watched(process)
        await client.connect(server.url)
        fleet = BusyFleet(open_bundle(path), client)
        work_on = [fleet.report_forever(), fleet.hear_forever(), watched.watch_forever()]
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(one) for one in work_on]
        await asyncio.sleep(end_s * _ALONE_SHARE)
        address = re.findall(r"page on (http://\S+)", server.log.read_text())[-1]
        until = time.monotonic() + end_s * (1 - _ALONE_SHARE)
        await asyncio.gather(*(asyncio.to_thread(look, address, seen, until) for _ in range(PAGES)))
        failed = [str(task.exception()) for task in tasks if task.done()]
        await cancel_all(tasks)
        await client.close()
    if failed:
        raise SystemExit(f"the load ended early: {failed[0]}")
    section = Section("page", "What the page costs a server", f"python -m tools.bench_page --minutes {minutes:g}")
    alone = watched.share(end_s * _ALONE_SHARE / 2, end_s * _ALONE_SHARE)
    looked_at = watched.share(end_s / 3, end_s)
    about = f"{DEVICES} devices, 100 events with audio a minute, {PAGES} open pages"
    section.add(
        "processor_share", looked_at - alone, "at most 0.05", f"of a core, {about}; with its ingest {looked_at:.3f}"
    )
    before, after = watched.memory_mb(0.3 * end_s, 0.36 * end_s), watched.memory_mb(0.94 * end_s, end_s)
    section.add(
        "growth_mb", after - before, "at most 5", f"from minute {minutes / 3:.0f} to {minutes:g}; {after:.0f} MB"
    )
    taken = f"{np.median(seen):.3f} s, 95 %: {np.quantile(seen, 0.95):.3f} s, of {len(seen)}"
    section.detail("until a spectrogram is there, median", taken)
    return section


def main(arguments: list[str] | None = None) -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--no-publish", action="store_true")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ssc-page-") as work:
        section = asyncio.run(measured(Path(work), given.minutes))
    (show if given.no_publish else publish)(section)


if __name__ == "__main__":
    main()
