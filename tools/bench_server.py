"""Measures a server's ingest: its throughput against torch alone, how long answers take, and whether memory grows.

    python -m tools.bench_server [--quick] [--only ingest|soak] [--minutes 20]

The server is a separate process with the broker it starts. For the ratio it is stopped (SIGSTOP) while frames are put
into the stream and then continued; in between, torch completes the same activations in batches and does nothing else.
Answers are timed at half the rate that is required, and at half the rate that was measured. In the soak, memory is
watched at a steady rate.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from nats.aio.client import Client

from runtime_edge.errors import LinkError
from runtime_edge.formats.bundle import open_bundle
from runtime_server.broker.hub import Hub
from runtime_server.harness.ports import free_port
from runtime_server.suffix.generations import cut_model
from runtime_server.suffix.suffix import ServedBlocks
from streamsplit_compile.encoder.encoders import load_encoder
from streamsplit_compile.encoder.segment import run_segments
from tools.benchmarks import Section, publish
from tools.fleet import prepare
from tools.server_load import AnswerCounter, RecordedFrames, fill

ENCODER = "mobilenet_v3_small"
DEVICES = 200
SOAK_RATE = 200.0
"""Windows a second: one for each device."""
_BATCHES = (16, 32, 64)
_ASKED = 0.8
"""The required share of torch's throughput alone."""
_READY_S = _DRAIN_S = 60.0
_WARM_FRAMES = 8000
_WARM_S = 10.0
"""Seconds at the start of a run under load before memory is measured."""


@dataclass(frozen=True)
class Round:
    """Windows a second of each, measured one after the other."""

    server: float
    torch_graph: float
    """The encoder's graph as it was exported."""
    torch_folded: float
    """The folded blocks that the server uses."""


class ServerProcess:
    """`ssc server run` without training, on one torch thread; `root` and `python` are for another checkout."""

    def __init__(
        self, directory: Path, encoder: Path, bundle: Path, root: Path | None = None, python: Path | None = None,
        options: Sequence[object] = (), ready_s: float = _READY_S,
    ) -> None:  # fmt: skip
        self.port = free_port()
        self.url, self.log = f"nats://127.0.0.1:{self.port}", directory / "server.log"
        run = ["-m", "runtime_server", encoder, bundle, "--state", directory / "server", "--port", self.port]
        self._root, self._ready_s = root, ready_s
        self._env = {**os.environ, "OMP_NUM_THREADS": "1", **({"PYTHONPATH": str(root)} if root else {})}
        self._command = list(
            map(str, [python or sys.executable, *run, "--no-training", "--threads", 1, "--max-rate", 10_000, *options])
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[psutil.Process]:
        """Run the process: enter when it answers, leave when it has stopped. Raises LinkError if it does not start."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._env, cwd=self._root)
        try:
            await self._ready(process)
            yield psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(_DRAIN_S)

    async def _ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._ready_s
        while True:
            hub = Hub(self.url, "bench")
            with contextlib.suppress(LinkError):
                await hub.connect()
                try:
                    await hub.server_status()
                    return
                finally:
                    await hub.close()
            if time.monotonic() > deadline or process.poll() is not None:
                raise LinkError(f"the server is not ready: {self.log.read_text(errors='replace')[-2000:]}")
            await asyncio.sleep(0.2)


async def drained(server: ServerProcess, process: psutil.Process, recorded: RecordedFrames, frames: int) -> float:
    """Frames a second drained from a backlog, without the first tenth, as a warm-up. Raises TimeoutError."""
    client = Client()
    await client.connect(server.url, name="bench")
    async with AnswerCounter().listening("127.0.0.1", server.port) as answers:
        process.send_signal(signal.SIGSTOP)
        try:
            await fill(client, recorded, frames)
        finally:
            process.send_signal(signal.SIGCONT)
        deadline, began, first = time.monotonic() + _DRAIN_S, 0.0, 0
        while answers.count < frames:
            if not began and answers.count >= frames // 10:
                began, first = time.monotonic(), answers.count
            if time.monotonic() > deadline:
                raise TimeoutError(f"{answers.count} of {frames} frames were answered")
            await asyncio.sleep(0.005)
        seconds = time.monotonic() - began
    await client.close()
    return (frames - first) / seconds


def completed(complete: Callable[[torch.Tensor], object], activations: torch.Tensor, seconds: float) -> float:
    """Windows a second by torch alone, at the best of several batch sizes."""
    best = 0.0
    for size in _BATCHES:
        batch = activations[torch.arange(size) % len(activations)]
        with torch.inference_mode():
            complete(batch)
            began, done = time.perf_counter(), 0
            while time.perf_counter() - began < seconds / len(_BATCHES):
                complete(batch)
                done += size
        best = max(best, done / (time.perf_counter() - began))
    return best


async def under_load(
    server: ServerProcess, process: psutil.Process, bundle: Path, cut: int, rate: float, seconds: float
) -> tuple[dict[str, Any], float]:
    """The report of `tools.server_load` at a steady rate, and the server's growth meanwhile, MB (1e6 bytes)."""
    command = [
        *(sys.executable, "-m", "tools.server_load", "--broker", server.url, "--bundle", str(bundle)),
        *("--cut", str(cut), "--rate", str(rate), "--seconds", str(seconds), "--devices", str(DEVICES)),
    ]
    load = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output = asyncio.create_task(load.communicate())
    began, memory = time.monotonic(), []
    while not output.done():
        await asyncio.sleep(0.5)
        if _WARM_S <= time.monotonic() - began <= seconds:
            memory.append(process.memory_info().rss / 1e6)
    report: dict[str, Any] = json.loads((await output)[0])
    quarter = max(1, len(memory) // 4)
    return report, float(np.mean(memory[-quarter:]) - np.mean(memory[:quarter]))


class ServerBench:
    """An encoder, its bundle, a server, and the frames that devices ship at the middle cut."""

    def __init__(self, work: Path) -> None:
        torch.set_num_threads(1)
        self.encoder, self.bundle = prepare(work, ENCODER)
        self._opened = open_bundle(self.bundle)
        self.cut = len(self._opened.manifest.info.cuts) // 2
        self.server = ServerProcess(work, self.encoder, self.bundle)

    async def ingest(self, frames: int, rounds: int, seconds: float) -> Section:
        """Measure throughput against torch alone, and answers under two loads for `seconds` each."""
        loaded, recorded = load_encoder(self.encoder), RecordedFrames(self._opened, self.cut, DEVICES)
        segments = cut_model(loaded.graph, self._opened, loaded.tensors).segments
        activations, served, cut = torch.from_numpy(recorded.activations), ServedBlocks(segments), self.cut
        found = []
        async with self.server.running() as process:
            await drained(self.server, process, recorded, frames // 2)  # warm-up
            for _ in range(rounds):
                found.append(
                    Round(
                        await drained(self.server, process, recorded, frames),
                        completed(lambda batch: run_segments(segments[cut:], batch), activations, 1.5),
                        completed(lambda batch: served.complete(cut, batch), activations, 1.5),
                    )
                )
                print(found[-1], flush=True)
            asked, reached = (_median(found, name) for name in ("torch_graph", "server"))
            reports = [
                (await under_load(self.server, process, self.bundle, cut, rate / 2, seconds))[0]
                for rate in (_ASKED * asked, reached)
            ]
        print(*reports, sep="\n", flush=True)
        return _ingest(found, self._opened.manifest.info.cuts[cut].name, *reports)

    async def soak(self, rate: float, minutes: float) -> Section:
        """Measure memory at `rate` windows a second, after every batch size has been used once."""
        recorded = RecordedFrames(self._opened, self.cut, DEVICES)
        async with self.server.running() as process:
            await drained(self.server, process, recorded, _WARM_FRAMES)
            report, growth_mb = await under_load(self.server, process, self.bundle, self.cut, rate, 60.0 * minutes)
        section = Section("server", "Memory", "python -m tools.bench_server --only soak", part="soak")
        about = (
            f"MB (1e6 bytes) that the server grew by in {minutes:g} minutes of {report['rate']:.0f} windows a second"
        )
        section.add("memory_growth_mb", growth_mb, "at most 5", f"{about}: mean of the last quarter less the first")
        section.detail("frames of that: sent, unanswered", f"{report['stored']}, {report['unanswered']}")
        return section


def _ingest(found: list[Round], cut: str, asked: dict[str, Any], reached: dict[str, Any]) -> Section:
    section = Section("server", "Ingest", "python -m tools.bench_server --only ingest", part="ingest")
    ratios = [one.server / one.torch_graph for one in found]
    section.add(
        "ingest_ratio",
        float(np.median(ratios)),
        f"at least {_ASKED}",
        f"frames a second through the server over torch alone on the exported graph, {ENCODER} behind {cut}, one "
        f"torch thread each, median of {len(found)} rounds ({min(ratios):.2f} to {max(ratios):.2f})",
    )
    folded = float(np.median([one.server / one.torch_folded for one in found]))
    section.add(
        "ingest_ratio_folded", folded, "", "the same over torch alone on the folded blocks that the server runs"
    )
    about = "from a frame's moment to its answer, of {} devices, at {:.0f} a second: half of {}"
    for name, report, goal, load in (
        ("reply_p95_ms", asked, "at most 60", f"{_ASKED:.0%} of torch alone"),
        ("reply_p95_ms_reached", reached, "", "what the server reaches"),
    ):
        section.add(name, report["p95_ms"], goal, about.format(DEVICES, report["rate"], load))
        section.detail("the same, p50, p99, ms", f"{report['p50_ms']:.1f}, {report['p99_ms']:.1f}")
        section.detail("frames of that load: sent, unanswered", f"{report['stored']}, {report['unanswered']}")
    for name in ("server", "torch_graph", "torch_folded"):
        section.detail(f"windows a second: {name.replace('_', ', ')}", f"{_median(found, name):.0f}")
    return section


def _median(found: list[Round], name: str) -> float:
    return float(np.median([getattr(one, name) for one in found]))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and frames, and less time under load")
    parser.add_argument("--only", choices=("ingest", "soak"))
    parser.add_argument("--minutes", type=float, help="of the soak [default: 20, with --quick 0.5]")
    options = parser.parse_args(arguments)
    quick, content = options.quick, {}
    with tempfile.TemporaryDirectory(prefix="ssc-bench-") as work:
        bench = ServerBench(Path(work))
        if options.only != "soak":
            frames, rounds, seconds = (4000, 3, 30.0) if quick else (12_000, 9, 120.0)
            content = publish(asyncio.run(bench.ingest(frames, rounds, seconds)))
        if options.only != "ingest":
            content = publish(asyncio.run(bench.soak(SOAK_RATE, options.minutes or (0.5 if quick else 20.0))))
    return content


if __name__ == "__main__":
    main()
