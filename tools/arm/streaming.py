"""Runs `ssc edge run` on the emulated machine with a broker and a server on this one.

The device gets audio through its standard input, a window at a time, and its splitter table is replaced until windows
have been shipped at every cut. The server's answers are compared with this machine's embeddings of the same windows,
cut and encoded in the same way, and with the whole encoder in torch.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from runtime_edge.formats import minisign
from runtime_edge.formats.records.table import SplitterTable
from runtime_server.broker.hub import Hub
from runtime_server.harness.ports import free_port
from runtime_server.lab.policy_arms import always
from tools.arm.machine import EmulatedMachine, SitePackages
from tools.arm.sample import TARGET, Array, Sample

MIN_COSINE = 0.999
"""Lowest cosine of an embedding with this machine's for the same window, cut and encoded in the same way."""
MAX_WINDOWS_PER_CUT = 6
_WINDOWS_PER_CUT = 2
_DEADLINE_MS = 60_000
_PATIENCE_S = 120.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class Streamed:
    """The result of one `ssc edge run`."""

    runtime: str
    encoding: str
    windows: int
    acked: int
    refused: int
    counted: int
    """Windows in the server's ledger."""
    unanswered: int
    """Windows shipped at a cut before the last whose embedding is not the server's answer."""
    by_cut: dict[str, int]
    cosine: dict[str, float]
    """Lowest cosine for each encoding of frames, with this machine's embedding, cut and encoded in the same way: the
    waveform is always sent as pcm16, the embedding as float16."""
    torch_cosine: dict[str, float]
    """Lowest cosine for each encoding of frames, with the whole encoder in torch, without any encoding."""
    rss_mb: float
    """The emulator's memory included."""
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether there were windows at every cut, and all were acknowledged, counted and completed correctly."""
        arrived = self.windows == self.acked == self.counted and not self.refused and not self.unanswered
        right = min(*self.cosine.values(), self.torch_cosine["pcm16"]) >= MIN_COSINE
        return arrived and right and all(self.by_cut.values())


class CheckServer:
    """A server process with its own broker that completes frames and does not train."""

    def __init__(self, directory: Path, sample: Sample) -> None:
        port = free_port()
        self.url, self.log = f"nats://127.0.0.1:{port}", directory / "server.log"
        self._state = directory / "server"
        command = [str(Path(sys.executable).with_name("ssc")), "server", "run", str(sample.encoder),
                   str(sample.bundle.path), "--state", str(self._state), "--port", str(port),
                   "--no-training", "-v"]  # fmt: skip
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def put_table(self, table: SplitterTable, device: str) -> None:
        """Send a table to one device."""
        key = minisign.read_secret_key(self._state / "signing.key")
        self._ask(lambda hub: hub.put_table(table, key, device))

    def counted(self, device: str) -> int:
        """Number of a device's windows in the server's ledger."""
        status: dict[str, Any] = self._ask(lambda hub: hub.server_status())
        return int(status["windows"].get(device, 0))

    def _ask(self, work: Callable[[Hub], Awaitable[Any]]) -> Any:
        async def connected() -> Any:
            async with Hub(self.url, "arm-check") as hub:
                return await work(hub)

        return asyncio.run(connected())


@contextmanager
def serve(directory: Path, sample: Sample) -> Iterator[CheckServer]:
    """A server that is ready, while the context lasts."""
    server = CheckServer(directory, sample)
    try:
        _until(lambda: "serving generation" in server.log.read_text() or None, server.process, server.log)
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)


class _Device:
    """The emulated process with its standard input and its results."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path, results: Path) -> None:
        self._log, self._results = log, results
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=environment)

    def hear(self, pcm: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(pcm)
        self.process.stdin.flush()

    def results(self, count: int) -> list[dict[str, Any]]:
        """All results, once there are `count`."""

        def lines() -> str | None:
            found = self._results.read_text() if self._results.exists() else ""
            return found if found.count("\n") >= count else None

        return [json.loads(line) for line in _until(lines, self.process, self._log).splitlines()]

    def finish(self) -> None:
        """End the audio and wait for the process to end."""
        self.process.communicate(timeout=_PATIENCE_S)
        if self.process.returncode:
            raise RuntimeError(
                f"{self._log.name}: exit code {self.process.returncode}\n{self._log.read_text()[-2000:]}"
            )


def stream(
    machine: EmulatedMachine,
    site: SitePackages,
    packages: Path,
    encoding: str,
    sample: Sample,
    server: CheckServer,
    directory: Path,
) -> Streamed:
    """Run one device process with a few windows at every cut."""
    started, name = time.monotonic(), f"{site.name}-{encoding}"
    results, report = directory / f"{name}.jsonl", directory / f"{name}.json"
    command = machine.ssc(
        "edge", "run", "--broker", server.url, "--device", name, "--target", TARGET, "--source", "-", "--no-realtime",
        "--state", directory / name, "--variant", f"{site.format}-fp32", "--encoding", encoding,
        "--deadline-ms", _DEADLINE_MS, "--results", results, "--report", report, "-v",
    )  # fmt: skip
    server.put_table(always(sample.bundle.table(TARGET), sample.cuts[0]), name)
    device = _Device(command, machine.environment(packages), directory / f"{name}.log", results)
    try:
        _ship_at_every_cut(device, name, sample, server)
        device.finish()
    finally:
        device.process.kill()
        device.process.wait()
    said, found = json.loads(report.read_text()), device.results(0)
    _until(lambda: server.counted(name) >= len(found) or None, server.process, server.log)
    answered = [result["finished"] == "server" or result["cut"] == sample.cuts[-1] for result in found]
    return Streamed(
        runtime=said["runtime"],
        encoding=encoding,
        windows=said["windows_captured"],
        acked=said["windows_acked"],
        refused=said["windows_refused"],
        counted=server.counted(name),
        unanswered=answered.count(False),
        by_cut={cut: sum(result["cut"] == cut for result in found) for cut in sample.cuts},
        cosine=_worst_cosine(found, lambda one: sample.through(one["window"], one["cut"], one["encoding"])),
        torch_cosine=_worst_cosine(found, lambda one: sample.whole(one["window"])),
        rss_mb=said["memory_mb"],
        seconds=time.monotonic() - started,
    )


def _ship_at_every_cut(device: _Device, name: str, sample: Sample, server: CheckServer) -> None:
    written = 2 * (sample.window - sample.hop)
    pcm = sample.pcm.tobytes()
    device.hear(pcm[:written])
    for cut in sample.cuts:
        server.put_table(always(sample.bundle.table(TARGET), cut), name)
        shipped = 0
        for _ in range(MAX_WINDOWS_PER_CUT):  # the table may arrive after the first
            heard = len(device.results(0))
            device.hear(pcm[written : written + 2 * sample.hop])
            written += 2 * sample.hop
            shipped += sum(result["cut"] == cut for result in device.results(heard + 1)[heard:])
            if shipped >= _WINDOWS_PER_CUT:
                break


def _worst_cosine(results: list[dict[str, Any]], reference: Callable[[dict[str, Any]], Array]) -> dict[str, float]:
    """Lowest cosine of results with their references, by encoding."""
    worst: dict[str, float] = {}
    for result in results:
        found, expected = np.array(result["embedding"]), reference(result)
        cosine = float(found @ expected / np.linalg.norm(found) / np.linalg.norm(expected))
        worst[result["encoding"]] = min(cosine, worst.get(result["encoding"], 1.0))
    return worst


def _until(condition: Callable[[], _T | None], process: subprocess.Popen[bytes], log: Path) -> _T:
    """Wait for a `condition()` that is not None; returns it. Raises RuntimeError on timeout or if the process ends."""
    deadline = time.monotonic() + _PATIENCE_S
    while (value := condition()) is None:
        if time.monotonic() > deadline or process.poll() is not None:
            raise RuntimeError(f"{log.name} ends with\n{_tail(log)}")
        time.sleep(0.05)
    return value


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
