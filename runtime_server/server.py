"""The server: broker, ingest, trainer and releases in one process, or as one of several ranks."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy.typing as npt
import torch
from nats.aio.msg import Msg

from runtime_edge.base.aio import cancel_all
from runtime_edge.errors import AccessError, BundleError, FormatError, LinkError, UsageError
from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.records.envelope import open_record
from runtime_edge.formats.records.table import SplitterTable
from runtime_server.broker.access import SecurityConfig
from runtime_server.broker.broker_process import Broker, embedded, outside
from runtime_server.broker.hub import STATUS_SUBJECT, Hub
from runtime_server.broker.signed_records import SignedRecordWriter
from runtime_server.ingest.frame_replay import FrameReplay, ReplayConfig
from runtime_server.ingest.ingest import Ingest
from runtime_server.ingest.rate import FRAMES_PER_S, RateLimit
from runtime_server.labels.linear_probe import LinearProbe
from runtime_server.releases.followers import Follower, Followers, together
from runtime_server.releases.release_gate import ReleaseConfig, ReleaseGate, first_model
from runtime_server.releases.rollout import Rollout, RolloutConfig
from runtime_server.releases.rollout_service import RolloutService
from runtime_server.state.server_state import ServerState
from runtime_server.state.suspects import Suspects
from runtime_server.suffix.generations import KEPT_GENERATIONS, Generation, Generations
from runtime_server.suffix.suffix import Precision
from runtime_server.telemetry.health import HealthServer, healthz, metrics_page
from runtime_server.telemetry.server_metrics import ServerMeasurements
from runtime_server.telemetry.service_watch import ServiceWatch
from runtime_server.telemetry.tensorboard import Board
from runtime_server.training.checkpoint import Checkpoints, resumed
from runtime_server.training.ranks import Ranks
from runtime_server.training.trainer import TrainConfig, Trainer
from runtime_server.training_loop import TrainingLoop
from streamsplit_compile.bundle.bundle_writer import renew_signature, staging_directory, write_manifest
from streamsplit_compile.bundle.calibrate import windows_for
from streamsplit_compile.bundle.digests import weights_digest
from streamsplit_compile.encoder.encoders import LoadedEncoder

_LOG = logging.getLogger(__name__)
_LEDGER_PERIOD_S = 5.0
_BROKER_PATIENCE_S = 60.0
"""Of a rank: ending would make all of them start again."""
_STATUS_STEPS = 1000
"""Training steps a status tells of: more would not fit a message of every broker."""


@dataclass(frozen=True)
class ServerConfig:
    """Settings of `ssc server run`; see its `--help`."""

    bundle: Path
    state: Path
    broker: str | None = None
    """An outside broker; without one the server starts its own."""
    replicas: int = 1
    """Brokers of a cluster that keep each message."""
    host: str = "127.0.0.1"
    port: int = 4222
    mqtt_port: int | None = None
    """Where the embedded broker lets MQTT clients in."""
    key: Path | None = None
    calibrate: Path | None = None
    training: bool = True
    threads: int = 1
    precision: Precision = "float32"
    """What frames are completed in; training is always in float32."""
    train: TrainConfig = field(default_factory=TrainConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    max_rate: float = FRAMES_PER_S
    """Frames a second one device may send for long."""
    health_port: int | None = None
    """Where `/healthz` and `/metrics` answer on this machine."""
    tensorboard: Path | None = None
    """Directory for TensorBoard's event files."""
    checkpoint_steps: int = 200
    """Training steps between two checkpoints."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    release: ReleaseConfig = field(default_factory=ReleaseConfig)
    probe: Path | None = None
    """Labelled recordings, a folder or CSV, on which no release may be worse."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)


class Server:
    """Completes, trains and releases until `stop` is called."""

    def __init__(self, encoder: LoadedEncoder, config: ServerConfig, ranks: Ranks | None = None) -> None:
        """Raises UsageError for options that do not go together."""
        self.config, self.encoder, self.ranks = config, encoder, ranks or Ranks()
        if self.ranks.world > 1 and config.broker is None:
            raise UsageError(
                "--broker: several ranks need one that outlives each of them, such as `ssc server broker`; give its URL"
            )
        self.state = ServerState(config.state)
        self.started = asyncio.Event()
        self.broker: Broker | None = None
        if config.broker is None:
            self.broker = embedded(self.state.root, config.host, config.port, config.mqtt_port, config.security)
            self.address = self.broker.address
        else:
            self.address = outside(config.broker, config.security)
        self._stopping = asyncio.Event()
        self._jobs: dict[str, asyncio.Future[Any]] = {}
        self._started_at = time.monotonic()

    @property
    def url(self) -> str:
        """Where devices connect."""
        return self.address.url

    def stop(self) -> None:
        """Finish the work in progress and end."""
        self._stopping.set()

    async def run(self) -> dict[str, Any]:
        """Run until stopped; returns the final status. Raises SscError when it cannot start or a part fails."""
        torch.set_num_threads(self.config.threads)
        await asyncio.to_thread(self._load)
        self.ledger = self.state.ledger(self.ranks.partitions)
        self.hub = Hub(self.address, "server", SignedRecordWriter(self.state.root))
        port = self.config.health_port if self.ranks.first else None
        paths = {"/healthz": healthz(self.troubles), "/metrics": metrics_page(self.measure)}
        health = None if port is None else HealthServer(port, paths)
        try:
            if self.broker is not None:
                await self.broker.start()
            await self._connect()
            rate, suspects = (
                RateLimit(self.config.max_rate),
                Suspects(self.state.root / "suspects", self.ranks.partitions),
            )
            self.ingest = Ingest(self.hub, self.generations, self.trainer, self.ledger, rate, suspects)
            mend = self._mend_streams if self.ranks.first else None
            restart = self.broker.restart_when_there_is_room if self.broker else None
            self.watch = ServiceWatch(self.hub, self.ingest, self.ranks.partitions, mend, restart)
            self.followers = Followers(self.hub, self.ranks.world)
            self.releases = RolloutService(
                self.hub,
                self.rollout,
                self.generations,
                self.state,
                self.key,
                self.followers.keep if self.ranks.first else None,
            )
            self._start_training_loop()
            if self.ranks.first:
                await self.hub.subscribe(STATUS_SUBJECT, self._on_status)
                await self._announce()
                await self.releases.start(self._unreleased)
            else:
                await Follower(self.hub, self.ranks.rank, self.generations, self.state, self.status_of_all).start()
            return await self._serve()
        finally:
            await self.hub.close()
            if self.broker is not None:
                await self.broker.stop()
            self.ledger.close()
            if health is not None:
                health.close()

    async def _connect(self) -> None:
        """To a broker that is there, or, as one of several ranks, with patience."""
        deadline = time.monotonic() + (_BROKER_PATIENCE_S if self.ranks.world > 1 else 0.0)
        while True:
            try:
                return await self.hub.connect(create=self.ranks.first, replicas=self.config.replicas)
            except LinkError as exc:
                if isinstance(exc, AccessError) or time.monotonic() > deadline:
                    raise
                _LOG.warning("%s", exc)
            await asyncio.sleep(1.0)

    async def _serve(self) -> dict[str, Any]:
        jobs = {
            "ingest": self.ingest.run(self.ranks.partitions),
            "ledger": self._save_ledger(),
            "watch": self.watch.run(),
        }
        if self.ranks.first:
            jobs["releases"] = self.releases.run()
        if self.broker is not None:
            jobs["broker"] = self.broker.keep_running()
        if self.training_loop is not None:
            jobs["trainer"] = self.training_loop.run(self.ranks.partitions)
        self._jobs = {name: asyncio.create_task(job) for name, job in jobs.items()}
        tasks = list(self._jobs.values())
        stopped = asyncio.create_task(self._stopping.wait())
        self.started.set()
        try:
            await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done() and not task.cancelled():
                    task.result()
        finally:
            if self.training_loop is not None:
                self.training_loop.stop()  # the current step finishes first
            await cancel_all([stopped, *(job for name, job in self._jobs.items() if name != "trainer")])
            await asyncio.gather(*tasks, return_exceptions=True)
        return self.status()

    async def troubles(self) -> list[str]:
        """What is wrong with the server now; the first rank reports for all."""
        found = self.own_troubles()
        if self.started.is_set() and self.ranks.first and not found:
            others = await self.followers.statuses()
            for rank in range(1, self.ranks.world):
                told = others.get(rank, {}).get("troubles", ["no answer"])
                found += [f"rank {rank}: {trouble}" for trouble in told]
        return found

    def own_troubles(self) -> list[str]:
        """What keeps this rank from being well now."""
        if not self.started.is_set():
            return ["it is starting"]
        away = [] if self.hub.client.is_connected else ["the broker is away"]
        full = [self.broker.full] if self.broker and self.broker.full else []
        return (
            away
            + full
            + self.watch.troubles
            + [f"the {name} has ended" for name, job in self._jobs.items() if job.done()]
        )

    async def status_of_all(self) -> dict[str, Any]:
        """The combined status of all ranks on the first one; on another rank its own."""
        if not self.ranks.first:
            return {**self.status(), "troubles": self.own_troubles()}
        told = together(self.status(), await self.followers.statuses(), self.ranks.world)
        return {**told, "troubles": await self.troubles()}

    async def measure(self) -> ServerMeasurements:
        """The measurements for `/metrics`: windows and frames of all ranks, the rest of the first one."""
        if not self.started.is_set():
            return ServerMeasurements(self.encoder.id, 0, time.monotonic() - self._started_at, 0, 0, {}, False)
        told = await self.status_of_all()
        return ServerMeasurements(
            encoder=self.encoder.id,
            generation=self.rollout.base,
            uptime_s=time.monotonic() - self._started_at,
            devices=len(told["windows"]),
            windows=sum(told["windows"].values()),
            frames=told["counters"],
            connected=self.hub.client.is_connected,
            latency_ms=self.ingest.latency_ms,
            training=None if self.training_loop is None else self.training_loop.measure(),
        )

    def status(self) -> dict[str, Any]:
        """The server's status now."""
        history = self.trainer.history[-_STATUS_STEPS:] if self.trainer else []
        return {
            "encoder": self.encoder.id,
            "generation": self.rollout.base,
            "uptime_s": round(time.monotonic() - self._started_at, 1),
            "windows": self.ledger.counts(),
            "counters": dict(self.ingest.counters),
            "out_of_range": self.trainer.out_of_range() if self.trainer else {},
            "training_steps": self.trainer.steps if self.trainer else 0,
            "replay": asdict(self.training_loop.replayed)
            if self.training_loop and self.training_loop.replayed
            else None,
            "losses": [{"step": item.step, "seconds": round(item.seconds, 4), **item.losses} for item in history],
            "rollout": self.releases.status(),
            "releases": [asdict(outcome) for outcome in self.release_gate.outcomes] if self.release_gate else [],
        }

    def _load(self) -> None:
        """What is on the disk; the first rank makes what is not there yet while the others wait."""
        number = 0 if self.ranks.first else self.ranks.sum(0)[0]
        self.key = self.state.signing_key(self.config.key)
        self._unreleased: int | None = None
        newest = self._load_generations()
        self._load_trainer(self.generations.get(number) or newest)
        if self.ranks.first:
            self.ranks.sum(newest.number)

    def _load_generations(self) -> Generation:
        """Generations from the state directory, or the given bundle as the first one; the one to train on."""
        self.generations = Generations(self.encoder.graph, precision=self.config.precision)
        self.rollout = Rollout(self.state.root / "rollout.json", self.config.rollout)
        self.generations.protect(self.rollout.running)
        known = self.state.generations(KEPT_GENERATIONS, self.rollout.running)
        found = {bundle.manifest.info.generation for bundle, _ in known}
        for number in sorted(self.rollout.running - found):
            _LOG.error("%s: generation %d, which devices run, is missing", self.state.root / "generations", number)
        for bundle, tensors in known or [self._import_first()]:
            if self.ranks.first and renew_signature(bundle, self.key):
                _LOG.warning("%s: signed with another key until now, and from now on with this server's", bundle.path)
            newest = self.generations.add(bundle, tensors)
        if self.ranks.first:
            kept = {generation.number: generation.bundle.digest for generation in self.generations.kept()}
            self._unreleased = self.rollout.begin(kept)
        if self._unreleased is None:
            newest = self.generations.get(self.rollout.base) or newest
        return newest

    def _load_trainer(self, newest: Generation) -> None:
        self.trainer: Trainer | None = None
        self.release_gate: ReleaseGate | None = None
        if not self.config.training:
            return
        info = newest.bundle.manifest.info
        graph, train, width = self.encoder.graph, self.config.train, self.encoder.embedding_dim
        self.checkpoints = Checkpoints(self.state.root / "trainer" / "checkpoint.pt", self.encoder.id, self.ranks.rank)
        key = self.state.held_out_key()
        self.trainer = resumed(
            lambda: Trainer(first_model(graph, newest), train, width, self.ranks, key), self.checkpoints
        )
        self.release_gate = ReleaseGate(
            graph,
            self.generations,
            self.trainer,
            self.state,
            windows_for(info, self.config.calibrate),
            self.key,
            self.config.release,
            self.rollout,
            self.ranks,
            LinearProbe(self.config.probe, info.front_end) if self.config.probe and self.ranks.first else None,
        )

    def _start_training_loop(self) -> None:
        """What trains; which windows it may read again is fixed before any more are counted."""
        self.training_loop: TrainingLoop | None = None
        if self.trainer is None or self.release_gate is None:
            return
        replay = FrameReplay(self.hub, self.generations, self.trainer, self.ledger.snapshot(), self.config.replay)
        self.training_loop = TrainingLoop(
            self.trainer,
            self.release_gate,
            replay,
            self.checkpoints,
            self.config.checkpoint_steps,
            self.releases.released,
            self.ranks,
            Board(self.config.tensorboard) if self.config.tensorboard and self.ranks.first else None,
        )

    def _import_first(self) -> tuple[Bundle, dict[str, npt.NDArray[Any]]]:
        given = open_bundle(self.config.bundle)
        tensors = self.encoder.tensors
        if given.manifest.info.encoder.weights != weights_digest(tensors):
            raise BundleError(f"{given.path}: compiled from other weights than the encoder given; compile it again")
        number = given.manifest.info.generation
        path = self.state.bundle_path(number)
        with staging_directory(path) as staging:
            shutil.copytree(given.path, staging, dirs_exist_ok=True)
            write_manifest(staging, given.manifest, self.key)
        self.state.save_weights(number, tensors)
        return open_bundle(path), tensors

    async def _mend_streams(self) -> None:
        """Make the streams and buckets that are gone, and put into them what devices need."""
        await self.hub.create(self.config.replicas)
        await self._announce()

    async def _announce(self) -> None:
        """What devices need from a server that has just started."""
        bundle = (self.generations.get(self.rollout.base) or self.generations.newest).bundle
        await self.hub.put_signing_key(self.key.public)
        await self.hub.upgrade_records(self.key)
        for target in bundle.manifest.info.targets:
            if not self._usable(target, await self.hub.table(target), bundle):
                await self.hub.put_table(bundle.table(target), self.key)

    def _usable(self, target: str, record: bytes | None, bundle: Bundle) -> bool:
        """Whether a target's table that the broker has kept is signed with this server's key and fits the bundle."""
        try:
            opened = open_record(record or b"", "table", subjects.table_key(target), self.key.public, "table")
            table = SplitterTable.from_json(opened.body, "table")
            table.check_cuts([cut.name for cut in bundle.manifest.info.cuts])
        except FormatError:
            return False
        return True

    async def _save_ledger(self) -> None:
        while True:
            await asyncio.sleep(_LEDGER_PERIOD_S)
            try:
                await asyncio.to_thread(self.ledger.save)
            except OSError as exc:
                _LOG.error("the ledger cannot be saved: %s", exc)

    async def _on_status(self, message: Msg) -> None:
        await message.respond(msgspec.json.encode(await self.status_of_all()))
