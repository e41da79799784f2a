"""What a device spends on a window besides the model, in processor time of the whole process.

    python -m tools.edge_overhead --broker nats://127.0.0.1:4222 --source sound.wav --target x86-64 --state DIRECTORY

Runs a real device against a real broker, as `ssc edge run` does, and between one window and the next subtracts what
the blocks of the encoder took from what all of the process's threads took: reading and cutting the audio, splitter,
codec, spool, publishing, answers, memory, results, and whatever runs beside them. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from runtime_edge import engine
from runtime_edge.capture import Captured
from runtime_edge.config import DeviceConfig
from runtime_edge.device import Device
from runtime_edge.prefix import Prefix
from runtime_edge.results import WindowResult

WARM_UP = 40


class MeasuredPrefix(Prefix):
    """A prefix that adds up the processor time of its blocks, ms."""

    model_ms = 0.0

    def advance(self, cut: int) -> Any:
        """See `Prefix.advance`."""
        started = time.thread_time()
        try:
            return super().advance(cut)
        finally:
            MeasuredPrefix.model_ms += (time.thread_time() - started) * 1e3


class MeasuredDevice(Device):
    """A device that notes the processor time spent so far whenever a window is due."""

    def __init__(self, config: DeviceConfig) -> None:
        super().__init__(config, [self])
        self.spent: list[tuple[float, float]] = []
        self.by_thread: list[dict[str, float]] = []
        self.results: list[WindowResult] = []

    def put(self, result: WindowResult) -> None:
        """Take one result, as a sink."""
        self.results.append(result)

    def close(self) -> None:
        """Nothing to close."""

    async def _process(self, window: Captured) -> None:
        self.spent.append((time.process_time() * 1e3, MeasuredPrefix.model_ms))
        if len(self.spent) in (WARM_UP, self.config.max_windows):
            self.by_thread.append(_thread_ms())
        await super()._process(window)


def measure(config: DeviceConfig) -> dict[str, Any]:
    """Medians over the windows after the first 40, ms, and means by thread."""
    engine.Prefix = MeasuredPrefix  # type: ignore[misc]
    device = MeasuredDevice(config)
    report = asyncio.run(device.run())
    steps = list(zip(device.spent[WARM_UP:], device.spent[WARM_UP + 1 :], strict=False))
    model = [after[1] - before[1] for before, after in steps]
    everything = [after[0] - before[0] for before, after in steps]
    overhead = [one - other for one, other in zip(everything, model, strict=True)]
    first, last = device.by_thread
    return {
        "overhead_ms": statistics.median(overhead),
        "prefix_ms": statistics.median(model),
        "threads_ms": {name: round((last[name] - first[name]) / len(steps), 3) for name in first if name in last},
        "finished": report["finished"],
        "cuts": {cut: sum(result.cut == cut for result in device.results) for cut in {r.cut for r in device.results}},
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
    print(json.dumps(measure(config)))


if __name__ == "__main__":
    main()
