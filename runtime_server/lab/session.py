"""One server, and devices one after the other, each on the same link and through the same steps."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil

from runtime_edge.base.files import write_atomic
from runtime_edge.base.traffic import traffic_log
from runtime_edge.errors import CheckFailed
from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.results import WindowResult
from runtime_edge.formats.strict import UNREADABLE
from runtime_edge.measure import plain_python
from runtime_server.broker.hub import Hub
from runtime_server.harness.network import SERVER_ADDRESS, Network, Traffic, listener_in, socket_in
from runtime_server.harness.pacing import Encoded, Pace
from runtime_server.harness.ports import free_port
from runtime_server.harness.processes import DEVICE, Child, Children, wait_for_line
from runtime_server.harness.relay import LinkState, Passage, Relay
from runtime_server.lab.policy_arms import Policy
from runtime_server.lab.scenarios import ScenarioStep
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.splitter.pricing import bottleneck_ms, exit_ms, whole_macs

_START_S = 90.0
_FIRST_WINDOWS = 6
"""Windows before a scenario begins: by then the device has its table and its blocks, and its caches are warm."""
_SETTLE_S = 2.0
"""Time after the end for frames in flight to arrive."""


class _Counted(msgspec.Struct):
    run: traffic_log.Traffic = traffic_log.Traffic()


class _Said(msgspec.Struct):
    """The part of a device's `status.json` that is read here."""

    traffic: _Counted = msgspec.field(default_factory=_Counted)


@dataclass(frozen=True)
class TimedResult:
    """One result, and when it left the device's process, s since the epoch."""

    at: float
    result: WindowResult


@dataclass
class RunRecording:
    """What a device did during a scenario."""

    began: float
    """s since the epoch."""
    seconds: float = 0.0
    results: list[TimedResult] = field(default_factory=list)
    """The last result of each window captured during the scenario, in order of arrival."""
    firsts: dict[int, TimedResult] = field(default_factory=dict)
    """By window, its first result, if that came from an exit."""
    traffic: Traffic = field(default_factory=lambda: Traffic(0, 0))
    update_bytes: int = 0
    """The part of it spent on updates, as the device counts it, accurate to a few seconds."""
    passages: list[Passage] = field(default_factory=list)
    """What the link carried, from shortly before the scenario; seconds from its beginning."""
    processor_s: float = 0.0
    """Processor time of the device process."""
    queued_s: float = 0.0
    """Time in which its threads were ready while others had the processor; 0 if the kernel does not report it."""
    memory_mb: float = 0.0
    encode_ms: float = 0.0
    """Processor time to make one frame, paced; 0 for a device that is not paced."""


class Lab:
    """`async with Lab(...) as lab: await lab.play(policy, audio, steps, seconds)`.

    With `namespaces`, the kernel shapes a cable between two network namespaces and counts its bytes; without, the relay
    paces the data, and only the data is counted. Raises UsageError if namespaces are not permitted.
    """

    def __init__(
        self,
        work: Path,
        bundle: Bundle,
        target: str,
        namespaces: bool = True,
        paced: bool = True,
        python_ms: float | None = None,
    ) -> None:
        """`python_ms`: the time measured on a device (`ssc bench device`), in place of the target's figure."""
        self.work, self.bundle, self.target, self._paced = work, bundle, target, paced
        self.python_factor = max(1.0, (python_ms or target_python_ms(target)) / plain_python.python_ms())
        """How many times longer Python takes on the target than here."""
        self._network = Network() if namespaces else None
        self._children = Children(work)
        self._stack = contextlib.AsyncExitStack()
        self._cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._runs = 0
        self._load: Child
        self._relay: Relay
        self._hub: Hub

    @property
    def measured_on(self) -> str:
        """What the counted bytes include."""
        return "the device's interface, all headers" if self._network else "the data of TCP, without its headers"

    @property
    def link_is(self) -> str:
        """How the link is emulated."""
        if self._network:
            return (
                "a cable between two network namespaces of one kernel, whose token buckets hold both rates, and a "
                "relay that adds delay, jitter and outages; no radio, no loss"
            )
        return "a TCP relay on loopback, which holds both rates and adds delay, jitter and outages; no radio, no loss"

    async def __aenter__(self) -> Lab:
        try:
            if self._network is not None:
                self._stack.enter_context(self._network)
            await self._stack.enter_async_context(self._children)
            if self._paced:
                (self.work / "pace.json").write_bytes(msgspec.json.encode(self.pace()))
            self._load = await self._children.start(
                "load",
                *self._device_cores(),
                launcher=(sys.executable, "-m", "runtime_server.harness.load"),
                piped=True,
            )
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def pace(self) -> Pace:
        """The pace of the target: block times from its cost table, and Python slowed by the measured factor."""
        manifest = self.bundle.manifest
        info, macs = manifest.info, whole_macs(manifest)
        cost = info.targets[self.target]
        return Pace(
            list(cost.block_ms),
            self.python_factor,
            {one.cut: bottleneck_ms(one, cost, macs) for one in info.bottlenecks},
            {one.cut: exit_ms(one, cost, macs) for one in info.exits},
        )

    async def serve(self, encoder: Path) -> None:
        """Start the server on its side of the link."""
        port = free_port()
        server = await self._children.start(
            "server", "server", "run", str(encoder), str(self.bundle.path), "--state", str(self.work / "server"),
            "--port", str(port), "--no-training", "-v", launcher=self._launcher(self._server_cores(), server=True),
        )  # fmt: skip
        await wait_for_line(server, "serving generation", _START_S)
        if self._network is not None:
            side = self._network.server
            self._relay = Relay(("127.0.0.1", port), listener_in(side, SERVER_ADDRESS), lambda: socket_in(side))
            desk = Relay(("127.0.0.1", port), None, lambda: socket_in(side))
        else:
            self._relay, desk = Relay(("127.0.0.1", port)), Relay(("127.0.0.1", port))
        for relay in (self._relay, desk):
            await relay.start()
            self._stack.push_async_callback(relay.stop)
        self._hub = Hub(f"nats://127.0.0.1:{desk.port}", "lab")
        await self._hub.connect()
        self._stack.push_async_callback(self._hub.close)

    @property
    def url(self) -> str:
        """Where devices connect."""
        return f"nats://{SERVER_ADDRESS if self._network else '127.0.0.1'}:{self._relay.port}"

    async def play(self, policy: Policy, audio: Path, steps: Sequence[ScenarioStep], seconds: float) -> RunRecording:
        """Run one device through one scenario. Raises CheckFailed if it fails."""
        async with self.device(policy, audio, "--threads", "1") as device:
            lines = ResultLines(device)
            reading = asyncio.create_task(lines.read())
            try:
                self._shape(ScenarioStep(0.0, 100.0, 0.0, 0.0, 0.0))
                self._relay.passages = []
                await lines.wait_for(_FIRST_WINDOWS, _START_S)
                before = self._update_bytes(device.name)
                recording = await self._record(device, lines, steps, seconds)
            finally:
                await device.stop()
                await reading
        recording.update_bytes = max(0, self._update_bytes(device.name) - before)
        account = self.work / f"{device.name}-encoded.json"
        if account.exists():
            recording.encode_ms = msgspec.json.decode(account.read_bytes(), type=Encoded).mean_ms
        return recording

    def _update_bytes(self, name: str) -> int:
        """The bytes that tables and bundles have taken since the device's start, as it reports them."""
        status = self.work / name / "status.json"
        return msgspec.json.decode(status.read_bytes(), type=_Said).traffic.run.updates if status.exists() else 0

    @contextlib.asynccontextmanager
    async def device(self, policy: Policy, audio: Path, *options: str) -> AsyncGenerator[Child, None]:
        """A device process that writes results to a pipe; after an exit's answer it always writes the server's too."""
        self._runs += 1
        name = f"{re.sub(r'[^a-z0-9]+', '-', policy.name.lower())[:48]}-{self._runs}"
        key = minisign.read_secret_key(self.work / "server" / "signing.key")
        await self._hub.put_table(policy.table, key, name)
        bundle = self._bundle_with(policy, name)
        account = str(self.work / f"{name}-encoded.json")
        pace = ["--pace", str(self.work / "pace.json"), "--account", account] if self._paced else []
        device = await self._children.start(
            name, *pace, "edge", "run", "--broker", self.url, "--target", self.target, "--source", str(audio),
            "--device", name, "--state", str(self.work / name), "--bundle", str(bundle), "--results", "-",
            "--revise-above", "0", *options, *policy.options, launcher=self._launcher(self._device_cores()), piped=True,
        )  # fmt: skip
        try:
            yield device
        finally:
            await device.stop()

    def _bundle_with(self, policy: Policy, name: str) -> Path:
        """The same bundle with the policy's table, so that even the first window follows the policy."""
        path = self.work / f"{name}-bundle"
        shutil.copytree(self.bundle.path, path, copy_function=_link_or_copy)
        file = self.bundle.manifest.info.targets[self.target].table
        (path / file).unlink()
        (path / f"{file}.minisig").unlink(missing_ok=True)
        write_atomic(path / file, policy.table.to_json())
        return path

    async def _record(
        self, device: Child, lines: ResultLines, steps: Sequence[ScenarioStep], seconds: float
    ) -> RunRecording:
        process = psutil.Process(device.process.pid)
        clock = time.monotonic()
        player = asyncio.create_task(self._play_steps(steps))
        recording, before = RunRecording(began=time.time()), self._traffic()
        used, queued = sum(process.cpu_times()[:2]), _queued_s(process.pid)
        try:
            await asyncio.sleep(seconds)
            recording.seconds = time.time() - recording.began
            recording.traffic = self._traffic().since(before)
            recording.processor_s = sum(process.cpu_times()[:2]) - used
            recording.queued_s = max(0.0, _queued_s(process.pid) - queued)
            recording.memory_mb = process.memory_info().rss / 1e6
            await asyncio.sleep(_SETTLE_S)
        except psutil.NoSuchProcess:
            raise CheckFailed(f"{device.name}: {device.last_words()}") from None
        finally:
            player.cancel()
            self._shape(ScenarioStep(0.0, 100.0, 0.0, 0.0, 0.0))
        recording.passages = [
            Passage(one.begins - clock, one.ends - clock, one.way, one.bytes) for one in self._relay.passages or ()
        ]
        ended = recording.began + recording.seconds
        recording.results = [heard for heard in lines.heard if recording.began <= heard.result.time < ended]
        recording.firsts = {heard.result.window: lines.firsts[heard.result.window]
                            for heard in recording.results if heard.result.window in lines.firsts}  # fmt: skip
        if not recording.results:
            raise CheckFailed(f"{device.name}: no window was finished; {device.last_words()}")
        return recording

    async def _play_steps(self, steps: Sequence[ScenarioStep]) -> None:
        began = time.monotonic()
        for step in steps:
            await asyncio.sleep(max(0.0, began + step.at_s - time.monotonic()))
            self._shape(step)

    def _shape(self, step: ScenarioStep) -> None:
        """Set link and load as in a step."""
        # Half of a round trip's jitter belongs to each direction. The kernel's bucket passes a burst that fits into it
        # at once; the relay behind it holds that for as long as it would have taken, and hardly delays data that comes
        # at the rate.
        self._relay.state = LinkState(step.rtt_ms / 2, step.jitter_ms / 2, step.mbps, step.mbps, step.outage)
        if self._network is not None:
            self._network.shape(step.mbps, step.mbps)
        assert self._load.process.stdin is not None
        self._load.process.stdin.write(f"{step.cpu}\n".encode())

    def _traffic(self) -> Traffic:
        if self._network is not None:
            return self._network.traffic()
        return Traffic(self._relay.passed["up"], self._relay.passed["down"])

    def _device_cores(self) -> list[str]:
        return [str(self._cores[-1])] if len(self._cores) > 1 else []

    def _server_cores(self) -> list[str]:
        return [str(core) for core in self._cores[:-1]]

    def _launcher(self, cores: Sequence[str], server: bool = False) -> list[str]:
        inside = []
        if self._network is not None:
            inside = self._network.run_in(self._network.server if server else self._network.device)
        return [*inside, *DEVICE, *(word for core in cores for word in ("--core", core))]


def target_python_ms(name: str) -> float:
    """The time of the fixed piece of Python on a target according to its file, ms."""
    target, reference = load_target(name), load_target("x86-64")
    if target.python is not None:
        return target.python.work_ms.value
    assert reference.python is not None
    ratio = target.launch.session_us.value / reference.launch.session_us.value
    return reference.python.work_ms.value * ratio


class ResultLines:
    """A device's results as they are written, one for each window: the server's replaces an exit's."""

    def __init__(self, device: Child) -> None:
        self.heard: list[TimedResult] = []
        self.firsts: dict[int, TimedResult] = {}
        """By window, the exit's result."""
        self._device, self._more = device, asyncio.Event()
        self._decoder = msgspec.json.Decoder(WindowResult)

    async def read(self) -> None:
        """Read until the device ends."""
        assert self._device.process.stdout is not None
        async for line in self._device.process.stdout:
            with contextlib.suppress(*UNREADABLE):
                timed = TimedResult(time.time(), result := self._decoder.decode(line))
                if result.finished == "exit":
                    self.firsts[result.window] = timed
                if result.revises:
                    self.heard = [heard for heard in self.heard if heard.result.window != result.window]
                self.heard.append(timed)
            self._more.set()
        self._more.set()

    async def wait_for(self, count: int, timeout_s: float) -> None:
        """Wait for this many results. Raises CheckFailed."""
        deadline = time.monotonic() + timeout_s
        while len(self.heard) < count:
            self._more.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._more.wait(), 1.0)
            if not self._device.running or time.monotonic() > deadline:
                raise CheckFailed(f"{self._device.name}: {self._device.last_words()}")


def _queued_s(pid: int) -> float:
    """Total time that a process's threads have waited in the run queue so far (Linux)."""
    total_ns = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread has ended
            total_ns += int(file.read_text().split()[1])
    return total_ns / 1e9


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
