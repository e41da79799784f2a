"""Measures a device's time for a window besides the model, in processor time of the whole process.

    python -m tools.edge_overhead --broker nats://127.0.0.1:4222 --source sound.wav --target x86-64 --state DIRECTORY

Runs a real device with a real broker, as `ssc edge run` does. From the time that all threads of the process take
between one window and the next it subtracts the time of the encoder's blocks. What remains is reading and cutting the
audio, splitter, codec, spool, publishing, answers, memory, results, and anything that runs beside them. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import statistics
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from runtime_edge.config import DeviceConfig
from runtime_edge.device.capture import CapturedWindow
from runtime_edge.device.device import Device
from runtime_edge.device.in_flight import InFlight
from runtime_edge.device.pipeline import Pipeline
from runtime_edge.formats.codec import CutCodec
from runtime_edge.formats.results import WindowResult
from runtime_edge.inference import engine
from runtime_edge.inference.prefix import Prefix
from runtime_edge.policy.memory import GaussianMemory
from runtime_edge.policy.splitter import Splitter
from runtime_edge.transport.frame_store import FrameStore

WARM_UP = 40


class MeasuredPrefix(Prefix):
    """A prefix that sums the processor time of its blocks, ms."""

    model_ms = 0.0

    def advance(self, cut: int) -> Any:
        """See `Prefix.advance`."""
        started = time.thread_time()
        try:
            return super().advance(cut)
        finally:
            MeasuredPrefix.model_ms += (time.thread_time() - started) * 1e3


STEPS = (
    ("splitter", Splitter, "choose"),
    ("codec", CutCodec, "encode"),
    ("frame", engine, "encode_frame"),
    ("spool", FrameStore, "put"),
    ("memory", GaussianMemory, "update"),
    ("result", InFlight, "result"),
)
"""The named steps of a window; the rest is reading audio, threads waking each other, and the broker's library."""


class Notes:
    """Notes the processor time spent so far whenever a window is due; also a sink that keeps only the cuts."""

    def __init__(self, windows: int, steps: bool) -> None:
        """With `steps`, each step is timed, which itself takes time."""
        self._windows = windows
        self.spent_ms: list[tuple[float, float]] = []
        self.by_thread: list[dict[str, float]] = []
        self.cuts: Counter[str] = Counter()
        self.steps_ms = {name: [0.0] for name, _, _ in STEPS if steps}
        if steps:
            for step in STEPS:
                self._watch(*step)

    def window(self) -> None:
        """Note the time: a window is due."""
        self.spent_ms.append((time.process_time() * 1e3, MeasuredPrefix.model_ms))
        if len(self.spent_ms) in (WARM_UP, self._windows):
            self.by_thread.append(_thread_ms())
        for times in self.steps_ms.values():
            times.append(0.0)

    def _watch(self, name: str, owner: Any, attribute: str) -> None:
        """Sum the processor time of a function for each window."""
        call, times = getattr(owner, attribute), self.steps_ms[name]

        @functools.wraps(call)
        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.thread_time()
            try:
                return call(*arguments, **named)
            finally:
                times[-1] += (time.thread_time() - started) * 1e3

        setattr(owner, attribute, timed)

    def put(self, result: WindowResult) -> None:
        """Take one result."""
        self.cuts[result.cut] += 1

    def close(self) -> None:
        """Nothing to close."""


def measure(config: DeviceConfig, windows: int, steps: bool) -> dict[str, Any]:
    """Measure medians over the windows after the first 40, ms, and means by thread."""
    notes, take = Notes(windows, steps), Pipeline.run_window

    def noted(pipeline: Pipeline, window: CapturedWindow) -> None:
        notes.window()
        take(pipeline, window)

    engine.Prefix, Pipeline.run_window = MeasuredPrefix, noted  # type: ignore[misc, method-assign]
    report = asyncio.run(Device(config, [notes]).run())
    pairs = list(zip(notes.spent_ms[WARM_UP:], notes.spent_ms[WARM_UP + 1 :], strict=False))
    model = [after[1] - before[1] for before, after in pairs]
    overhead = [after[0] - before[0] - ms for (before, after), ms in zip(pairs, model, strict=True)]
    first, last = notes.by_thread
    return {
        "overhead_ms": statistics.median(overhead),
        "prefix_ms": statistics.median(model),
        "steps_ms": {name: round(statistics.median(times[WARM_UP:]), 3) for name, times in notes.steps_ms.items()},
        "threads_ms": {name: round((last[name] - first[name]) / len(pairs), 3) for name in first if name in last},
        "finished": report["finished"],
        "cuts": dict(notes.cuts),
        "lost": report["windows_lost"],
    }


def _thread_ms() -> dict[str, float]:
    clocks = {thread.name: time.pthread_getcpuclockid(thread.ident) for thread in threading.enumerate() if thread.ident}
    return {name: time.clock_gettime(clock) * 1e3 for name, clock in clocks.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", default="x86-64")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=400)
    parser.add_argument("--speed", type=float, default=10.0)
    parser.add_argument("--steps", action="store_true", help="time the named steps too")
    options = parser.parse_args()
    config = DeviceConfig(
        device="overhead",
        broker=options.broker,
        source=options.source,
        target=options.target,
        state=options.state,
        threads=1,
        loop=True,
        speed=options.speed,
        max_windows=options.windows,
        drain_s=5.0,
    )
    print(json.dumps(measure(config, options.windows, options.steps)))


if __name__ == "__main__":
    main()
