"""Runs a fleet on this machine while killing ranks and brokers, and counts windows lost and answered wrongly.

    python -m tools.fleet [--devices 200] [--minutes 10] [--kill-every-s 60] [--ranks 2] [--brokers 3] [--audio DIR]

Its devices use a real device's link, spool and delivery (connection, message ids, reply inbox, acknowledgements,
repetition); only microphone and encoder are replaced by recorded activations, one window a second. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import random
import secrets
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime_edge.base.aio import cancel_all
from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import LinkError
from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.codec import CutCodec
from runtime_edge.formats.wire import Reply, encode_frame
from runtime_edge.inference.prefix import Prefix
from runtime_edge.transport.accounting import Accounting, LoopCounts
from runtime_edge.transport.bandwidth import BandwidthEstimator
from runtime_edge.transport.connection import Connection
from runtime_edge.transport.delivery import Delivery
from runtime_edge.transport.frame_store import FrameStore
from runtime_edge.transport.spool.spool import Spool
from runtime_server.state.ledger import PartitionedLedger
from runtime_server.suffix.generations import cut_model
from streamsplit_compile.bundle.calibrate import calibration_windows
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder, new_encoder, save_checkpoint
from streamsplit_compile.encoder.segment import run_segments
from tools.cluster import Brokers, RankedServer

DEADLINE_S = 1.0
TOLERANCE = 5e-3
"""Largest allowed difference between an answer (int8, in any batch) and the embedding computed here."""
_RECORDED = 257
"""The number of recorded windows: a prime, so that devices in step do not ship the same activation."""
_SPOOL_BYTES = 64 << 20
_SETTLE_S = 180.0


class FleetRecordings:
    """Activations of recordings at several cuts, each with the embedding of a right answer."""

    def __init__(self, bundle: Bundle, encoder: Path, audio: Path | None, cuts: list[int] | None = None) -> None:
        """`cuts` are shipped in turn [default: all after the front end that can be trained on]."""
        info, loaded = bundle.manifest.info, load_encoder(encoder)
        front = info.front_end
        windows, _ = calibration_windows(
            audio, front.sample_rate, front.window_samples, front.hop_samples, _RECORDED, seed=0
        )
        model = cut_model(loaded.graph, bundle, loaded.tensors)
        prefix, chosen = Prefix(bundle), cuts or list(range(1, len(info.cuts) - 1))
        codecs = {cut: CutCodec(info.cuts[cut], "int8") for cut in chosen}
        self._number, self._payloads, expected = info.generation, [], []
        for place, window in enumerate(windows):
            cut = chosen[place % len(chosen)]
            prefix.start(window)
            payload, compressed = codecs[cut].encode(prefix.advance(cut))
            self._payloads.append((cut, compressed, bytes(payload)))
            activation = codecs[cut].decode(payload, compressed)
            with torch.inference_mode():
                expected.append(run_segments(model.segments[cut:], torch.from_numpy(activation))[0].numpy())
        self._expected = np.stack(expected)

    def frame(self, device: int, window: int) -> bytes:
        """The frame that a device ships for a window."""
        cut, compressed, payload = self._payloads[self._place(device, window)]
        return encode_frame(window, time.time_ns(), self._number, cut, "int8", compressed, 0.5, payload)

    def belongs(self, device: int, window: int, reply: Reply) -> bool:
        """Whether an answer has the embedding of this window."""
        expected = self._expected[self._place(device, window)]
        embedding = reply.vector(len(expected))
        return embedding is not None and float(np.abs(embedding - expected).max()) <= TOLERANCE

    @property
    def told_apart(self) -> float:
        """Share of pairs of recorded windows whose answers can be told apart."""
        gaps = np.abs(self._expected[:, None] - self._expected[None]).max(axis=2)
        pairs = len(gaps) * (len(gaps) - 1)
        return float((gaps > 2 * TOLERANCE).sum() / pairs)

    @property
    def mean_bytes(self) -> float:
        """Mean bytes of a payload."""
        return float(np.mean([len(payload) for _, _, payload in self._payloads]))

    def _place(self, device: int, window: int) -> int:
        return (31 * device + 7 * window) % len(self._payloads)


@dataclass
class Answers:
    """The answers to all devices."""

    statuses: Counter[str] = field(default_factory=Counter)
    late: int = 0
    wrong: int = 0
    """Answers that belong to another device or window."""
    took_ms: list[float] = field(default_factory=list)


class FleetDevice:
    """One device: a window a second, with its own starting time."""

    def __init__(
        self, number: int, broker: str, directory: Path, recorded: FleetRecordings, worker: Worker, answers: Answers
    ) -> None:
        self.name, self._number = f"fleet-{number}", number
        self._boot = secrets.token_hex(4)
        self.accounting, self.counts = Accounting(), LoopCounts()
        self._recorded, self._worker, self._answers = recorded, worker, answers
        self.connection = Connection(broker, self.name)
        self.connection.on_late_reply(self._late)
        self.frame_store = FrameStore(
            Spool(directory / f"{self.name}.db", _SPOOL_BYTES), f"{self.name}.{self._boot}.", self.accounting
        )
        config = DeviceConfig(self.name, "-", directory, "rpi4", seed=number)
        self._delivery = Delivery(config, self.connection, self.frame_store, worker, self.counts, BandwidthEstimator())
        self._awaited: set[asyncio.Future[None]] = set()

    async def run(self, period_s: float, stopping: asyncio.Event, leaving: asyncio.Event) -> None:
        """Ship windows until `stopping`, then the rest of the spool, and take answers until `leaving`."""
        connecting = asyncio.create_task(self.connection.connect_with_retries())
        replay = asyncio.create_task(self._delivery.replay_forever())
        due = time.monotonic() + period_s * random.Random(self._number).random()
        window = 0
        try:
            while not stopping.is_set():
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due += period_s
                await self._ship(window)
                window += 1
            await asyncio.gather(*self._awaited)
            await self._delivery.drain(_SETTLE_S)
            await leaving.wait()
        finally:
            await cancel_all([connecting, replay, *self._awaited])
            await self._delivery.close()
            await self.connection.close()
            await self._worker.run(self.frame_store.close)

    async def _ship(self, window: int) -> None:
        live, frame = self._delivery.has_room(), self._recorded.frame(self._number, window)
        message_id = subjects.message_id(self.name, self._boot, window)
        await self._worker.run(self.frame_store.put, message_id, window, frame, 0.5, live)
        if live:
            answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._awaited.add(answered)
            answered.add_done_callback(self._awaited.discard)
            self._delivery.exchange(
                message_id, window, frame, DEADLINE_S, functools.partial(self._answered, window, answered)
            )
        else:
            self._delivery.replay_soon()

    def _answered(self, window: int, answered: asyncio.Future[None], reply: Reply | None, seconds: float) -> None:
        if not answered.done():
            answered.set_result(None)
        if reply is not None:
            self._answers.took_ms.append(seconds * 1e3)
            self._check(reply, window)

    def _late(self, reply: Reply) -> None:
        self._answers.late += 1
        self._check(reply, reply.window)

    def _check(self, reply: Reply, window: int) -> None:
        self._answers.statuses[reply.status] += 1
        known = reply.window == window and window < self.accounting.captured
        if reply.status == "ok" and not (known and self._recorded.belongs(self._number, window, reply)):
            self._answers.wrong += 1


@dataclass(frozen=True)
class FleetReport:
    """The results of a run."""

    devices: int
    ranks: int
    brokers: int
    seconds: float
    kills: dict[str, int]
    """How often each rank or broker was killed."""
    captured: int
    acked: int
    replayed: int
    """Acknowledged windows that were sent later from the spool."""
    counted: int
    """Windows in the server's ledger."""
    lost: int
    """Windows that were acknowledged but are not in the ledger, or captured but are nowhere."""
    duplicated: int
    """Windows that are in the ledger more often than captured."""
    replies: dict[str, int]
    late_replies: int
    wrong_replies: int
    told_apart: float
    reply_p50_ms: float
    reply_p95_ms: float
    training_steps: int
    """Training steps since the ranks' last restart."""
    exit_status: int
    settled_s: float
    """Time from the last window until everything was counted."""


@dataclass(frozen=True)
class FleetConfig:
    """Size and duration of a run, and what is killed."""

    devices: int = 200
    seconds: float = 600.0
    period_s: float = 1.0
    kill_every_s: float | None = 60.0
    ranks: int = 2
    brokers: int = 3
    seed: int = 0
    server_options: tuple[object, ...] = ()


class Fleet:
    """Devices with brokers and ranks, whose files are below `directory`."""

    def __init__(
        self, directory: Path, encoder: Path, bundle: Path, recorded: FleetRecordings, config: FleetConfig
    ) -> None:
        self.config, self._directory, self._recorded = config, directory, recorded
        self.brokers = Brokers(directory, config.brokers)
        self.server = RankedServer(directory, encoder, bundle, self.brokers, config.ranks, *config.server_options)
        self.answers, self.kills = Answers(), Counter[str]()
        self.devices: list[FleetDevice] = []
        self._status: dict[str, Any] = {}

    async def run(self) -> FleetReport:
        """Run everything, from starting the first broker to stopping the last."""
        began = time.monotonic()
        await self.brokers.start()
        try:
            await self.server.ready()
            try:
                settled_s = await self._stream()
            finally:
                exit_status = await self.server.stop()
        finally:
            await self.brokers.stop()
        return self._report(time.monotonic() - began, settled_s, exit_status)

    async def _stream(self) -> float:
        stopping, leaving = asyncio.Event(), asyncio.Event()
        with Worker() as worker:
            self.devices = [
                FleetDevice(number, self.brokers.url, self._directory, self._recorded, worker, self.answers)
                for number in range(self.config.devices)
            ]
            period_s = self.config.period_s
            running = [asyncio.create_task(device.run(period_s, stopping, leaving)) for device in self.devices]
            meanwhile = asyncio.create_task(self.meanwhile())
            await asyncio.wait([*running, meanwhile], timeout=self.config.seconds, return_when=asyncio.FIRST_EXCEPTION)
            await cancel_all([meanwhile])
            ended = time.monotonic()
            stopping.set()
            await self._settle()
            leaving.set()
            await asyncio.gather(*running)
        return time.monotonic() - ended

    async def meanwhile(self) -> None:
        """Kill one process after the other with SIGKILL while the devices ship, in an order given by the seed."""
        if self.config.kill_every_s is None:
            return
        order = random.Random(self.config.seed)
        victims = [f"rank {rank}" for rank in range(self.config.ranks)]
        victims += [f"broker {place}" for place in range(self.config.brokers)]
        while True:
            await asyncio.sleep(self.config.kill_every_s)
            victim = order.choice(victims)
            kind, _, number = victim.partition(" ")
            while not (self.server if kind == "rank" else self.brokers).kill(int(number)):
                await asyncio.sleep(0.2)  # it is starting
            self.kills[victim] += 1
            print(f"killed {victim}", flush=True)

    async def _settle(self) -> None:
        """Wait until the server has counted all captured windows, or no more arrive."""
        deadline = time.monotonic() + _SETTLE_S
        while time.monotonic() < deadline:
            captured = sum(device.accounting.captured for device in self.devices)
            try:
                self._status = await self.server.status()
            except LinkError:
                self._status = {}
            missing = any(rank.get("missing") for rank in self._status.get("ranks", []))
            if self._status and not missing and sum(self._status["windows"].values()) >= captured:
                break
            await asyncio.sleep(1.0)
        await asyncio.sleep(2.0)  # time for duplicates to arrive

    def _report(self, seconds: float, settled_s: float, exit_status: int) -> FleetReport:
        ledger = PartitionedLedger(self.server.state / "ledger")
        counted = ledger.counts()
        ledger.close()
        totals = [device.accounting for device in self.devices]
        lost = duplicated = 0
        for device in self.devices:
            own, there = device.accounting, counted.get(device.name, 0)
            lost += max(0, own.captured - there)
            duplicated += max(0, there - own.captured)
        took = self.answers.took_ms or [float("nan")]
        return FleetReport(
            devices=self.config.devices,
            ranks=self.config.ranks,
            brokers=self.config.brokers,
            seconds=round(seconds, 1),
            kills=dict(self.kills),
            captured=sum(one.captured for one in totals),
            acked=sum(one.acked for one in totals),
            replayed=sum(device.counts.replayed for device in self.devices),
            counted=sum(counted.values()),
            lost=lost,
            duplicated=duplicated,
            replies=dict(self.answers.statuses),
            late_replies=self.answers.late,
            wrong_replies=self.answers.wrong,
            told_apart=round(self._recorded.told_apart, 4),
            reply_p50_ms=round(float(np.percentile(took, 50)), 1),
            reply_p95_ms=round(float(np.percentile(took, 95)), 1),
            training_steps=self._status.get("training_steps", 0),
            exit_status=exit_status,
            settled_s=round(settled_s, 1),
        )


def prepare(directory: Path, name: str) -> tuple[Path, Path]:
    """Make a new registered encoder and its bundle below `directory`."""
    encoder, bundle = directory / "encoder.pt", directory / "bundle"
    module, config = new_encoder(name)
    save_checkpoint(name, config, module, encoder, untrained=True)
    compile_encoder(load_encoder(encoder), CompileOptions([load_target("rpi4")]), bundle)
    return encoder, bundle


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run a fleet; print and return the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kill-every-s", type=float, default=60.0, help="0 kills nothing")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--brokers", type=int, default=3)
    parser.add_argument("--encoder", default="mobilenet_v3_small")
    parser.add_argument("--audio", type=Path, help="recordings [default: a synthesised soundscape]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="leave logs and state in this directory")
    options = parser.parse_args(arguments)
    config = FleetConfig(
        devices=options.devices,
        seconds=60.0 * options.minutes,
        kill_every_s=options.kill_every_s or None,
        ranks=options.ranks,
        brokers=options.brokers,
        seed=options.seed,
        server_options=("--release-least-s", 0),
    )
    with contextlib.ExitStack() as stack:
        work = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ssc-fleet-")))
        work.mkdir(exist_ok=True)
        encoder, bundle = prepare(work, options.encoder)
        recorded = FleetRecordings(open_bundle(bundle), encoder, options.audio)
        report = asyncio.run(Fleet(work, encoder, bundle, recorded, config).run())
    print(json.dumps(asdict(report), indent=2))
    return asdict(report)


if __name__ == "__main__":
    main()
