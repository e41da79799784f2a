"""A server's status, troubles and measurements."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
from nats.aio.msg import Msg

from runtime_edge.base.aio import cancel_all
from runtime_server.adaptation.adaptation_service import AdaptationService
from runtime_server.broker.broker_process import Broker
from runtime_server.broker.hub import Hub
from runtime_server.broker.stream_shares import StreamShares
from runtime_server.ingest.ingest import Ingest
from runtime_server.releases.followers import Followers, together
from runtime_server.releases.rollout_service import RolloutService
from runtime_server.serving.loading import Loaded
from runtime_server.state.ledger import PartitionedLedger
from runtime_server.telemetry.server_metrics import PEAK_MEMORY, RECEIVED, ServerMeasurements, peak_memory_bytes
from runtime_server.telemetry.service_watch import ServiceWatch
from runtime_server.training.ranks import Ranks
from runtime_server.training_loop import TrainingLoop

_STATUS_STEPS = 1000
"""Training steps that a status contains: with more, it would not fit into a message of every broker."""
STARTING = "it is starting"


class Jobs:
    """The tasks that run for as long as the server does, each under a name."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    def start(self, name: str, job: Coroutine[Any, Any, Any]) -> None:
        """Start a job."""
        self._tasks[name] = asyncio.create_task(job)

    @property
    def troubles(self) -> list[str]:
        """The jobs that have ended; if none has started yet, that the server is starting."""
        if not self._tasks:
            return [STARTING]
        return [f"the {name} has ended" for name, task in self._tasks.items() if task.done()]

    async def wait(self, stopping: asyncio.Event) -> None:
        """Wait until the event is set or a job ends. Raises what a job raised."""
        stopped = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait([stopped, *self._tasks.values()], return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks.values():
                if task.done() and not task.cancelled():
                    task.result()
        finally:
            await cancel_all([stopped])

    async def end(self, patiently: str) -> None:
        """Cancel all jobs except `patiently`, which ends by itself, and wait until all have ended."""
        await cancel_all(task for name, task in self._tasks.items() if name != patiently)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


@dataclass(frozen=True, kw_only=True)
class ServerParts:
    """The parts of a server that has started."""

    encoder: str
    since: float
    """`time.monotonic()` of the start, s."""
    ranks: Ranks
    loaded: Loaded
    broker: Broker | None
    """The broker that the server runs itself, if any."""
    hub: Hub
    ledger: PartitionedLedger
    ingest: Ingest
    shares: StreamShares
    watch: ServiceWatch
    followers: Followers
    releases: RolloutService
    training_loop: TrainingLoop | None
    jobs: Jobs
    adaptation: AdaptationService | None = None
    """None: devices are not adapted."""


class ServerStatus:
    """Looks at the parts of a server; keeps no state."""

    def __init__(self, parts: ServerParts) -> None:
        self._parts = parts

    async def troubles(self) -> list[str]:
        """What is wrong with the server now; the first rank reports for all ranks."""
        found = self.own_troubles()
        if self._parts.ranks.first and not found:
            others = await self._parts.followers.statuses()
            for rank in range(1, self._parts.ranks.world):
                told = others[rank].troubles if rank in others else ["no answer"]
                found += [f"rank {rank}: {trouble}" for trouble in told]
        return found

    def own_troubles(self) -> list[str]:
        """What is wrong with this rank now."""
        ended = self._parts.jobs.troubles
        if ended == [STARTING]:
            return ended
        away = [] if self._parts.hub.client.is_connected else ["the broker is away"]
        full = [self._parts.broker.full] if self._parts.broker and self._parts.broker.full else []
        return away + full + self._parts.watch.troubles + ended

    def status(self) -> dict[str, Any]:
        """The server's status now."""
        training, loop = self._parts.loaded.training, self._parts.training_loop
        history = training.trainer.history[-_STATUS_STEPS:] if training else []
        return {
            "encoder": self._parts.encoder,
            "generation": self._parts.loaded.rollout.base,
            "uptime_s": round(time.monotonic() - self._parts.since, 1),
            "windows": self._parts.ledger.counts(),
            "counters": dict(self._parts.ingest.counters),
            "ledger": {"damaged_lines": self._parts.ledger.damaged_lines},
            "out_of_range": training.trainer.out_of_range() if training else {},
            "training_steps": training.trainer.steps if training else 0,
            "energy": loop.energy.told() if loop and loop.energy else None,
            "received": {"bytes": self._received_bytes, "source": RECEIVED},
            "peak_memory": {"bytes": peak_memory_bytes(), "source": PEAK_MEMORY},
            "replay": asdict(loop.replayed) if loop and loop.replayed else None,
            "losses": [{"step": item.step, "seconds": round(item.seconds, 4), **item.losses} for item in history],
            "adaptation": self._parts.adaptation.status() if self._parts.adaptation else None,
            "rollout": self._parts.releases.status(),
            "releases": [asdict(outcome) for outcome in training.release_gate.outcomes] if training else [],
        }

    @property
    def _received_bytes(self) -> int:
        return self._parts.hub.client.stats["in_bytes"]

    async def status_of_all(self) -> dict[str, Any]:
        """On the first rank the combined status of all ranks, on any other its own."""
        if not self._parts.ranks.first:
            return {**self.status(), "troubles": self.own_troubles()}
        told = together(self.status(), await self._parts.followers.statuses(), self._parts.ranks.world)
        return {**told, "troubles": await self.troubles()}

    async def measure(self) -> ServerMeasurements:
        """The measurements for `/metrics`: windows and frames of all ranks, everything else of the first rank."""
        told = await self.status_of_all()
        return ServerMeasurements(
            encoder=self._parts.encoder,
            generation=self._parts.loaded.rollout.base,
            uptime_s=time.monotonic() - self._parts.since,
            devices=len(told["windows"]),
            windows=sum(told["windows"].values()),
            frames=told["counters"],
            damaged_lines=told["ledger"]["damaged_lines"],
            connected=self._parts.hub.client.is_connected,
            latency_ms=self._parts.ingest.latency_ms,
            training=None if self._parts.training_loop is None else self._parts.training_loop.measure(),
            received_bytes=self._received_bytes,
            peak_memory_bytes=peak_memory_bytes(),
            device_traffic=self._parts.releases.traffic().hour.traffic,
            release_is_paced=bool(self._parts.releases.paced),
            adaptation=told["adaptation"],
        )

    async def answer(self, message: Msg) -> None:
        """Answer one request for the status."""
        await message.respond(msgspec.json.encode(await self.status_of_all()))
