"""The training loop: replay the stream, then train, checkpoint and release until stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from runtime_edge.base.histogram import Histogram
from runtime_edge.errors import LinkError, SscError
from runtime_server.broker.pushed_heads import PushedHeads
from runtime_server.ingest.frame_replay import FrameReplay, ReplayOutcome
from runtime_server.releases.release_gate import ReleaseGate, ReleaseOutcome
from runtime_server.suffix.generations import Generation
from runtime_server.telemetry.server_metrics import TrainingStatus
from runtime_server.telemetry.step_energy import EnergyUse, StepEnergy
from runtime_server.telemetry.tensorboard import Board
from runtime_server.training.checkpoint import Checkpoints
from runtime_server.training.ranks import Ranks
from runtime_server.training.trainer import Trainer

_LOG = logging.getLogger(__name__)
_RETRY_S = 2.0
_IDLE_S = 0.2

Released = Callable[[Generation, ReleaseOutcome], None]


class TrainingLoop:
    """Runs a trainer, in lockstep with those of the other ranks.

    `released` is called on the event loop for every new generation.
    """

    def __init__(
        self,
        trainer: Trainer,
        release_gate: ReleaseGate,
        replay: FrameReplay,
        checkpoints: Checkpoints,
        checkpoint_steps: int,
        released: Released,
        heads: PushedHeads,
        ranks: Ranks | None = None,
        board: Board | None = None,
        energy: StepEnergy | None = None,
    ) -> None:
        self.step_ms = Histogram()
        self.replayed: ReplayOutcome | None = None
        self._trainer, self._release_gate, self._replay = trainer, release_gate, replay
        self._released, self._heads = released, heads
        self._checkpoints, self._checkpoint_steps = checkpoints, checkpoint_steps
        self._ranks, self._board, self._energy = ranks or Ranks(), board, energy
        self._halt = threading.Event()
        self._refilling: asyncio.Task[None] | None = None

    async def run(self, partitions: range) -> None:
        """Train until `stop`. The first step waits for the replay, so that a resumed trainer has its windows."""
        self._refilling = asyncio.create_task(self._refill(partitions))
        await asyncio.wait({self._refilling})
        if self._halt.is_set():
            return
        self._refilling.result()
        with ThreadPoolExecutor(1, "train") as pool:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(pool, self._train, loop)

    def stop(self) -> None:
        """Finish the current step, save a checkpoint, and end."""
        self._halt.set()
        if self._refilling is not None:
            self._refilling.cancel()

    async def _refill(self, partitions: range) -> None:
        while True:
            try:
                self.replayed = await self._replay.run(partitions)
                break
            except LinkError as exc:
                _LOG.warning("training waits: %s", exc)
                await asyncio.sleep(_RETRY_S)
        _LOG.info("%s", self.replayed)
        if self.replayed.missing:
            _LOG.warning("%d windows of the last run are no longer in the stream", self.replayed.missing)

    def _train(self, loop: asyncio.AbstractEventLoop) -> None:
        """Train until stopped, in the trainer's own thread; pauses leave time for completing frames."""
        trainer, rest = self._trainer, 1.0 / self._trainer.config.share - 1.0
        self._ranks.check_alike(trainer.fingerprint(), "weights to train")
        while True:
            due = self._ranks.first and self._release_gate.due
            halted, windows, release = self._ranks.sum(self._halt.is_set(), trainer.trainable, due)
            if halted:
                break
            if release:
                self._release(loop)
            if windows < trainer.config.min_windows:
                self._halt.wait(_IDLE_S)
                continue
            with self._energy.step() if self._energy else contextlib.nullcontext():
                metrics = trainer.step()
            self.step_ms.observe(metrics.seconds * 1e3)
            if self._board is not None:
                self._board.step(metrics)
            if trainer.steps - (self._checkpoints.saved or 0) >= self._checkpoint_steps:
                self._save()
            self._halt.wait(metrics.seconds * rest)
        if trainer.steps != (self._checkpoints.saved or 0):
            self._save()
        if self._board is not None:
            self._board.close()

    @property
    def energy(self) -> EnergyUse | None:
        """The energy of the training steps since the start; None if nothing measures it."""
        return self._energy.use if self._energy else None

    def measure(self) -> TrainingStatus:
        """The state of training now."""
        history, outcomes = self._trainer.history, self._release_gate.outcomes
        return TrainingStatus(
            steps=self._trainer.steps,
            saved_steps=self._checkpoints.saved or 0,
            last=history[-1] if history else None,
            step_ms=self.step_ms,
            buffers=self._trainer.sizes(),
            outcomes=self._release_gate.counts.copy(),
            judged=outcomes[-1] if outcomes else None,
            replayed=self.replayed,
            heads=self._release_gate.head_scores,
            energy=self.energy,
        )

    def _save(self) -> None:
        try:
            self._checkpoints.save(self._trainer)
        except OSError as exc:
            _LOG.error("no checkpoint at step %d: %s", self._trainer.steps, exc)

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            generation = self._release_gate.attempt(
                lambda: asyncio.run_coroutine_threadsafe(self._heads.read(), loop).result()
            )
        except (SscError, OSError) as exc:
            _LOG.error("release refused: %s", exc)
            return
        if self._board is not None and self._release_gate.outcomes:
            self._board.judged(self._release_gate.outcomes[-1])
        if generation is not None:
            loop.call_soon_threadsafe(self._released, generation, self._release_gate.outcomes[-1])
