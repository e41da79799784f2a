"""The server: broker, ingest, trainer and releases in one process, or as one of several ranks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import torch

from runtime_edge.errors import AccessError, LinkError, UsageError
from runtime_server.adaptation.known_adaptations import KnownAdaptations
from runtime_server.broker.broker_process import Broker, embedded, outside
from runtime_server.broker.hub import STATUS_SUBJECT, Hub
from runtime_server.broker.pushed_heads import PushedHeads
from runtime_server.broker.record_writer import SignedRecordWriter
from runtime_server.broker.stream_shares import StreamShares
from runtime_server.ingest.frame_replay import FrameReplay
from runtime_server.ingest.ingest import Ingest
from runtime_server.ingest.rate import RateLimit
from runtime_server.labels.head_clips import HeadClipsFolder
from runtime_server.releases.followers import Follower, Followers
from runtime_server.releases.rollout_service import RolloutService
from runtime_server.serving.adapting import adaptation_service, check_adapt, labelled_windows
from runtime_server.serving.announcement import Announcement
from runtime_server.serving.loading import Loaded, Loader
from runtime_server.serving.server_config import ServerConfig
from runtime_server.serving.server_status import STARTING, Jobs, ServerParts, ServerStatus
from runtime_server.state.ledger import PartitionedLedger
from runtime_server.state.server_address import keep_address
from runtime_server.state.server_state import ServerState
from runtime_server.state.suspects import Suspects
from runtime_server.telemetry.energy import energy_source
from runtime_server.telemetry.health import HealthAnswer, HealthServer, healthz, metrics_page
from runtime_server.telemetry.server_metrics import ServerMeasurements
from runtime_server.telemetry.service_watch import ServiceWatch
from runtime_server.telemetry.step_energy import StepEnergy
from runtime_server.telemetry.tensorboard import Board
from runtime_server.training.ranks import Ranks
from runtime_server.training_loop import Released, TrainingLoop
from runtime_server.web.page_job import start_page
from runtime_server.web.page_server import PageServer, WebAddress
from streamsplit_compile.encoder.encoders import LoadedEncoder

_LOG = logging.getLogger(__name__)
_LEDGER_PERIOD_S = 5.0
_BROKER_PATIENCE_S = 60.0
"""How long a rank keeps trying to connect: if it gave up, all ranks would have to restart."""
_TRAINER = "trainer"

Pages = dict[str, Callable[[], HealthAnswer]]
OnStarted = Callable[[ServerParts], None]


class Server:
    """Completes, trains and releases until `stop` is called."""

    def __init__(self, encoder: LoadedEncoder, config: ServerConfig, ranks: Ranks | None = None) -> None:
        """Raises UsageError for options that do not go together."""
        self._config, self._encoder, self._ranks = config, encoder, ranks or Ranks()
        if self._ranks.world > 1 and config.broker is None:
            raise UsageError(
                "--broker: several ranks need one that outlives each of them, such as `ssc server broker`; give its URL"
            )
        check_adapt(config, self._ranks.world)
        self._state = ServerState(config.state)
        self._broker: Broker | None = None
        if config.broker is None:
            self._broker = embedded(self._state.root, config.host, config.port, config.mqtt_port, config.security)
            self._address = self._broker.address
        else:
            self._address = outside(config.broker, config.security)
        self._web = None if config.web is None or not self._ranks.first else WebAddress.parse(config.web)
        self.page: PageServer | None = None
        """Set once the server has started, if a page is wanted."""
        self._stopping = asyncio.Event()
        self._since = time.monotonic()

    @property
    def url(self) -> str:
        """Where devices connect, without a password."""
        return str(self._address)

    def stop(self) -> None:
        """Finish the work in progress and end."""
        self._stopping.set()

    async def run(self, on_started: OnStarted = lambda _: None) -> dict[str, Any]:
        """Run until stopped; returns the final status. `on_started` is called once, when frames are served.

        Raises SscError when it cannot start or a part fails.
        """
        torch.set_num_threads(self._config.threads)
        loaded = await asyncio.to_thread(Loader(self._encoder, self._config, self._state, self._ranks).load)
        async with AsyncExitStack() as closing:
            pages = self._health(closing)
            parts = await self._start(closing, loaded)
            status = ServerStatus(parts)
            pages |= {"/healthz": healthz(status.troubles), "/metrics": metrics_page(status.measure)}
            await self._work(parts, on_started)
            return status.status()

    async def _work(self, parts: ServerParts, on_started: OnStarted) -> None:
        """Run until stopped, or until a job fails."""
        self._start_jobs(parts)
        try:
            on_started(parts)
            await parts.jobs.wait(self._stopping)
        finally:
            if parts.training_loop is not None:
                parts.training_loop.stop()  # the current step finishes first
            await parts.jobs.end(patiently=_TRAINER)

    def _health(self, closing: AsyncExitStack) -> Pages:
        """Health pages that say that the server is starting; they are replaced once it has started."""

        async def troubles() -> list[str]:
            return [STARTING]

        async def measure() -> ServerMeasurements:
            return ServerMeasurements(self._encoder.id, 0, time.monotonic() - self._since, 0, 0, {}, False)

        pages: Pages = {"/healthz": healthz(troubles), "/metrics": metrics_page(measure)}
        if self._config.health_port is not None and self._ranks.first:
            closing.callback(HealthServer(self._config.health_port, pages).close)
        return pages

    async def _start(self, closing: AsyncExitStack, loaded: Loaded) -> ServerParts:
        """Start the parts one after the other; `closing` ends them in the opposite order."""
        ranks, state, training = self._ranks, self._state, loaded.training
        ledger = state.ledger(ranks.partitions)
        closing.callback(ledger.close)
        hub = Hub(self._address, "server", SignedRecordWriter(state.root))
        if self._broker is not None:
            closing.push_async_callback(self._broker.stop)
            await self._broker.start()
        closing.push_async_callback(hub.close)
        await self._connect(hub)
        if ranks.first:
            keep_address(state.root, self._address)
        rate, suspects = RateLimit(self._config.max_rate), Suspects(state.root / "suspects", ranks.partitions)
        trainer, shares = training.trainer if training else None, StreamShares(hub)
        known = KnownAdaptations(state.root / "adaptations", loaded.generations)
        labelled = labelled_windows(HeadClipsFolder(state.head_clips), _LOG.warning)
        adaptation = adaptation_service(self._config, loaded, known, hub, labelled)
        ingest = Ingest(
            hub, loaded.generations, trainer, ledger, rate, suspects, shares,
            adaptations=known, hear=adaptation.hear if adaptation else None,
        )  # fmt: skip
        announcement = Announcement(hub, loaded, self._config.replicas)
        mend = announcement.mend if ranks.first else None
        restart = self._broker.restart_when_there_is_room if self._broker else None
        followers = Followers(hub, ranks.world)
        keep = followers.keep if ranks.first else None
        releases = RolloutService(
            hub,
            loaded.rollout,
            loaded.generations,
            state,
            loaded.key,
            keep,
            training.release_gate if training else None,
            PushedHeads(hub, loaded.key),
        )
        parts = ServerParts(
            encoder=self._encoder.id, since=self._since, ranks=ranks, loaded=loaded, broker=self._broker, hub=hub,
            ledger=ledger, ingest=ingest, shares=shares, followers=followers, releases=releases,
            watch=ServiceWatch(hub, ingest, ranks.partitions, mend, restart),
            training_loop=self._training_loop(hub, loaded, ledger, releases.released), jobs=Jobs(),
            adaptation=adaptation,
        )  # fmt: skip
        status = ServerStatus(parts)
        if ranks.first:
            await hub.subscribe(STATUS_SUBJECT, status.answer)
            await announcement.announce()
            await releases.start(loaded.unreleased)
            if self._web is not None:
                self.page = await start_page(
                    self._web, state.root, hub, loaded.key.public, status.status_of_all, loaded.generations
                )
                closing.push_async_callback(self.page.close)
        else:
            await Follower(hub, ranks.rank, loaded.generations, state, status.status_of_all).start()
        return parts

    def _start_jobs(self, parts: ServerParts) -> None:
        jobs = parts.jobs
        jobs.start("ingest", parts.ingest.run(self._ranks.partitions))
        jobs.start("ledger", _save_forever(parts.ledger))
        jobs.start("watch", parts.watch.run())
        jobs.start("shares", parts.shares.run())
        if self._ranks.first:
            jobs.start("releases", parts.releases.run())
        if parts.adaptation is not None:
            jobs.start("adaptation", parts.adaptation.run())
        if parts.broker is not None:
            jobs.start("broker", parts.broker.keep_running())
        if parts.training_loop is not None:
            jobs.start(_TRAINER, parts.training_loop.run(self._ranks.partitions))

    async def _connect(self, hub: Hub) -> None:
        """Connect to the broker, which must be running; one of several ranks keeps trying for a while."""
        deadline = time.monotonic() + (_BROKER_PATIENCE_S if self._ranks.world > 1 else 0.0)
        while True:
            try:
                return await hub.connect(create=self._ranks.first, replicas=self._config.replicas)
            except LinkError as exc:
                if isinstance(exc, AccessError) or time.monotonic() > deadline:
                    raise
                _LOG.warning("%s", exc)
            await asyncio.sleep(1.0)

    def _training_loop(
        self, hub: Hub, loaded: Loaded, ledger: PartitionedLedger, released: Released
    ) -> TrainingLoop | None:
        """The training loop, or None without training.

        The windows it may read again are fixed here, before any more are counted.
        """
        training, config = loaded.training, self._config
        if training is None:
            return None
        source = energy_source(config.energy, config.idle_watts) if self._ranks.first else None
        return TrainingLoop(
            training.trainer,
            training.release_gate,
            FrameReplay(hub, loaded.generations, training.trainer, ledger.snapshot(), config.replay),
            training.checkpoints,
            config.checkpoint_steps,
            released,
            PushedHeads(hub, loaded.key),
            self._ranks,
            Board(config.tensorboard) if config.tensorboard and self._ranks.first else None,
            StepEnergy(source) if source else None,
        )


async def _save_forever(ledger: PartitionedLedger) -> None:
    while True:
        await asyncio.sleep(_LEDGER_PERIOD_S)
        try:
            await asyncio.to_thread(ledger.save)
        except OSError as exc:
            _LOG.error("the ledger cannot be saved: %s", exc)
