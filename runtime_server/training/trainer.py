"""Trains the newest weights on windows at any cut: a window at cut k trains the blocks after k."""

from __future__ import annotations

import hashlib
import threading
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from runtime_edge.base.recent import Recent
from runtime_edge.errors import UsageError
from runtime_edge.policy.memory import GaussianMemory
from runtime_server.suffix.generations import CutModel, copy_module
from runtime_server.training.augment import AugmentConfig
from runtime_server.training.buffer import BufferSize, TemporalBuffer, TrainingWindow, WindowGroup
from runtime_server.training.embedding_metrics import Geometry, geometry
from runtime_server.training.losses import LOSSES, HybridConfig, HybridLoss
from runtime_server.training.losses.objectives import DEFAULT, OBJECTIVES
from runtime_server.training.objective import batch_loss, batch_of, virtual_negatives
from runtime_server.training.ranks import Ranks
from runtime_server.training.trained_frames import TrainedFrames

HELD_OUT_RUN, HELD_OUT_PERIOD = 4, 32
"""Of every 32 window indices, one run of 4 is never trained on: it judges releases, with its neighbours in time. Which
of the eight runs it is depends on a key that only the server has."""
_MIN_HELD_OUT = 2 * HELD_OUT_RUN
"""A device with fewer held-out windows does not judge: windows of a single run have no negatives."""
_MAX_COUNTED = 4096
"""Left-out windows are counted for at most this many devices: without accounts, anybody may use any name."""
BATCH_DEVICES = 4
"""The number of devices that share a batch; each further device adds as many windows as each of these has."""
_MAX_GROWTH = 8
"""Limit on the batch's growth: beyond 32 devices, a further one takes less than 3 % of the others' places."""
_IN_MEMORY = 2
"""Batches that a step holds in memory at once; for a larger one, the backward pass repeats the forward pass."""
_MAX_JUDGING = 64
"""At most this many devices of one rank judge a release; they are drawn again for each release."""


@dataclass(frozen=True)
class TrainConfig:
    """How the server learns."""

    batch: int = 32
    """Windows in a step; with more than `BATCH_DEVICES` devices it grows (`batch_for`)."""
    learning_rate: float = 1e-4
    """For a trained encoder. One with random weights needs ten times this (`tools/bench_learning.py`)."""
    warm_up_steps: int = 20
    """Number of steps over which the learning rate grows: norm layers keep their statistics, so nothing rescues a
    network from steps that are too long."""
    horizon: int = 400
    """Window indices of a device that are trained on: with fewer, all negatives are from the last minute."""
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema: float = 0.97
    """Weight of the past in the averaged weights that are released."""
    share: float = 0.6
    """Share of the time spent training; the rest is left to completing frames."""
    min_windows: int = 32
    """Training starts once this many trainable windows have arrived."""
    objective: str = DEFAULT
    """One of `OBJECTIVES`: the task. Releases are always judged by the default objective."""
    virtual_negatives: int = 256
    """Number for each anchor, if the objective uses them."""
    loss: HybridConfig = LOSSES["task"]
    """The other two terms bring nothing at their published weights (docs/training.md)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise UsageError for an unknown objective."""
        if self.objective not in OBJECTIVES:
            raise UsageError(f"objective: unknown {self.objective!r}, choose one of {', '.join(OBJECTIVES)}")

    def batch_for(self, devices: int) -> int:
        """Windows in a step with this many devices: a further device takes no places from the others."""
        return self.batch * min(max(devices, BATCH_DEVICES), _MAX_GROWTH * BATCH_DEVICES) // BATCH_DEVICES


@dataclass(frozen=True)
class StepMetrics:
    """One optimiser step."""

    step: int
    seconds: float
    windows: int
    losses: dict[str, float]
    geometry: Geometry
    """Of the batch, before the step."""
    gradient_norm: float
    """Before clipping; not finite for a skipped step."""


@dataclass(frozen=True)
class Judgement:
    """The quality of some weights on the held-out windows of one device."""

    loss: float
    """Without virtual negatives."""
    geometry: Geometry


class Trainer:
    """Owns the newest weights. `add` may be called from another thread than `step`."""

    def __init__(
        self,
        model: CutModel,
        config: TrainConfig,
        embedding_dim: int,
        ranks: Ranks | None = None,
        key: bytes | None = None,
    ) -> None:
        """Train `model`; `key` (up to 64 bytes, alike on all ranks), or else the seed, chooses what is held out."""
        self.config, self._width, self._ranks = config, embedding_dim, ranks or Ranks()
        self.model = model
        model.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions go backwards in two thirds of the time
        self.averaged = copy_module(model.module)
        self._history: Recent[StepMetrics] = Recent(10_000)
        self.steps = 0
        self.buffer = TemporalBuffer(horizon=config.horizon)
        """Windows to train on."""
        self.held_out = TemporalBuffer()
        """Windows that judge releases."""
        self.memory = GaussianMemory(dim=embedding_dim, seed=config.seed)
        """Mixture of the batches' embeddings, from which virtual negatives are drawn. No device has more than its share
        of it, at whatever rate it sends."""
        self.stream = ""
        """The stream in which the windows' positions are; empty while no window has come from a stream."""
        self.trained = TrainedFrames()
        self.to_reread: set[int] = set()
        """Sequence numbers of windows that a resumed trainer lacks: they are replayed before it continues."""
        self._key = config.seed.to_bytes(8, "little", signed=True) if key is None else key
        self._out_of_range: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.objective = OBJECTIVES[config.objective](
            model.segments, width=embedding_dim, temperature=config.loss.temperature, seed=config.seed
        )
        self._loss = HybridLoss(config.loss, self.objective)
        # Every rank draws its own windows and views; the loss draws the same numbers on all ranks.
        self._rng = np.random.default_rng(self._ranks.seed(config.seed))
        self._generator = torch.Generator().manual_seed(self._ranks.seed(config.seed))
        # The segments are an eval-mode graph: norm layers use their running statistics and never change them.
        self._parameters = _trained(model.module)
        self._all_parameters = [*self._parameters, *_trained(self.objective)]
        self.optimizer = torch.optim.AdamW(
            self._all_parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )

    def add(self, window: TrainingWindow) -> None:
        """Keep a window for training or, for one run in every `HELD_OUT_PERIOD`, for judging releases.

        A window whose activation is out of range is only counted. Only the ledger knows whether a window is new: call
        this once for each.
        """
        with self._lock:
            self.trained.add(window.sequence)
            if not window.in_range:
                self._leave_out(window.device)
                return
            self._keep(window)

    def out_of_range(self) -> dict[str, int]:
        """How many windows of each device were left out since the start because their activations were out of range."""
        with self._lock:
            return dict(self._out_of_range)

    def _leave_out(self, device: str) -> None:
        if device not in self._out_of_range and len(self._out_of_range) >= _MAX_COUNTED:
            del self._out_of_range[next(iter(self._out_of_range))]
        self._out_of_range[device] += 1

    def restore(self, window: TrainingWindow) -> None:
        """Restore a window that was added before a restart."""
        with self._lock:
            self.to_reread.discard(window.sequence)
            self._keep(window)

    def _keep(self, window: TrainingWindow) -> None:
        if window.cut < len(self.model.segments):
            (self.held_out if self._judges(window) else self.buffer).add(window)

    def _judges(self, window: TrainingWindow) -> bool:
        """Whether a window is held out. Without the key nobody can tell, whatever indices and boots they choose."""
        period, place = divmod(window.index, HELD_OUT_PERIOD)
        name = f"{window.device}\0{window.boot}\0{period}".encode()
        drawn = hashlib.blake2b(name, digest_size=8, key=self._key).digest()
        return place // HELD_OUT_RUN == int.from_bytes(drawn, "little") % (HELD_OUT_PERIOD // HELD_OUT_RUN)

    def plain_windows(self, count: int) -> tuple[list[WindowGroup], list[WindowGroup]]:
        """At most `count` plain windows to fit to, and as many others that are never trained on."""
        rng = np.random.default_rng((abs(self.config.seed), self.steps))
        fit, held_out = (kept.sample_batch(rng, count, plain=True) for kept in (self.buffer, self.held_out))
        return fit, held_out

    def sizes(self) -> dict[str, BufferSize]:
        """The sizes of the buffers, by use."""
        return {"train": self.buffer.size(), "held_out": self.held_out.size()}

    @property
    def trainable(self) -> int:
        """Number of windows to train on."""
        return len(self.buffer)

    @property
    def ready(self) -> bool:
        """Whether there is enough to train on, if this is the only rank."""
        return self.trainable >= self.config.min_windows

    def fingerprint(self) -> int:
        """A number that is the same for the same weights after the same number of steps."""
        found = self.steps
        for value in (*self.model.module.state_dict().values(), *self.objective.state_dict().values()):
            found = zlib.crc32(value.contiguous().numpy(), found)
        return found

    def step(self) -> StepMetrics:
        """One step of the loss (docs/method.md, section 5) on a fresh batch; all ranks take it together."""
        started = time.monotonic()
        groups = self._sample()
        loss, losses, geometry = self._objective(groups)
        self._warm_up()
        self.optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:  # false for a rank without windows
            loss.backward()  # type: ignore[no-untyped-call]
        self._ranks.add_gradients(self._parameters, _trained(self.objective))
        norm = nn.utils.clip_grad_norm_(self._all_parameters, self.config.clip_norm)
        if torch.isfinite(norm):  # one bad batch must not end the training
            self.optimizer.step()
            self._average()
            self.objective.after_step()
        self.steps += 1
        windows = sum(len(group) for group in groups)
        metrics = StepMetrics(self.steps, time.monotonic() - started, windows, losses, geometry, float(norm))
        self._history.append(metrics)
        return metrics

    @property
    def history(self) -> list[StepMetrics]:
        """The last steps, the oldest first."""
        return self._history.all()

    def judge(self, models: Sequence[CutModel]) -> list[list[Judgement]] | None:
        """Each model's weights on the held-out windows of each device, without gradients; None while there are too few.

        There is one list for each model, with one judgement for each device, in the same order. All ranks call it. A
        device is judged alone, on the same batch, views and directions for every model, so that devices do not
        influence each other's judgements. There are no virtual negatives: the mixture was learnt from earlier weights,
        so anything that leads away from them, such as a collapse, would look good.
        """
        own = [self._judged(device, models) for device in self._judging_devices()]
        rows = torch.tensor(own, dtype=torch.float64).reshape(len(own), len(models), 4)
        (rows,) = self._ranks.gather(rows)
        if not len(rows):
            return None
        return [
            [Judgement(loss, Geometry(*numbers)) for loss, *numbers in rows[:, place].tolist()]
            for place in range(len(models))
        ]

    def _judging_devices(self) -> list[str]:
        """Devices with enough held-out windows, at most `_MAX_JUDGING`."""
        counts = self.held_out.counts()
        devices = sorted(device for device, count in counts.items() if count >= _MIN_HELD_OUT)
        rng = np.random.default_rng((abs(self.config.seed), self.steps))
        return sorted(devices[place] for place in rng.permutation(len(devices))[:_MAX_JUDGING])

    def _judged(self, device: str, models: Sequence[CutModel]) -> list[list[float]]:
        """Loss, alignment, uniformity and effective rank of each model on one device's held-out windows."""
        seed, config = self.config.seed, self.config
        size = max(_MIN_HELD_OUT, 2 * config.batch // max(len(self.held_out.counts()), 1))
        groups = self.held_out.sample_batch(np.random.default_rng(seed), size, device)
        found = []
        for model in models:
            generator, loss = torch.Generator().manual_seed(seed), HybridLoss(config.loss)
            with torch.no_grad():
                batch = batch_of(groups, model.segments, self._width, generator, config.augment, loss.config.task)
                total, _ = batch_loss(batch, loss)
            found.append([float(total), *astuple(geometry(batch.anchors, batch.positives))])
        return found

    def averaged_tensors(self) -> dict[str, npt.NDArray[Any]]:
        """The weights to release, as copies by name."""
        return {name: value.cpu().numpy().copy() for name, value in self.averaged.state_dict().items()}

    def forget_stream(self, stream: str) -> None:
        """From now on positions are in this stream; those in another one mean nothing."""
        with self._lock:
            if self.stream:
                self.trained, self.to_reread = TrainedFrames(), set()
            self.stream = stream

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; windows are named by their positions in the stream."""
        with self._lock:
            memory, taken = self.memory.state(), (self.trained.floor, self.trained.last())
            kept = sorted({*self.buffer.sequences(), *self.held_out.sequences(), *self.to_reread})
        return {
            "steps": self.steps,
            "weights": self.model.module.state_dict(),
            "averaged": self.averaged.state_dict(),
            "objective": self.config.objective,
            "objective_state": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self._rng.bit_generator.state,
            "generators": [self._generator.get_state(), self._loss.generator.get_state()],
            "memory": memory,
            "stream": self.stream,
            "floor": taken[0],
            "taken": taken[1],
            "kept": kept,
        }

    def load_state_dict(self, state: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> None:
        """Continue from what `state_dict` returned; `to_reread` then names the missing windows.

        With `own`, the windows and what chooses among them come from it, for example if `state` is another rank's; with
        an empty one they start afresh. Settings stay those of `config`. Raises KeyError, TypeError, ValueError,
        RuntimeError or FormatError for the state of another encoder: then the trainer is unusable.
        """
        self.model.module.load_state_dict(state["weights"])
        self.averaged.load_state_dict(state["averaged"])
        self.objective.load_state_dict(state["objective_state"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group.update(lr=self.config.learning_rate, weight_decay=self.config.weight_decay)
        self._loss.generator.set_state(state["generators"][1])
        self.steps, own = state["steps"], state if own is None else own
        if not own:
            return
        self._rng.bit_generator.state = own["rng"]
        self._generator.set_state(own["generators"][0])
        with self._lock:
            self.memory.load_state(own["memory"])
            self.trained = TrainedFrames.of(own["floor"], own["taken"])
            self.stream, self.to_reread = own["stream"], set(own["kept"])

    def _objective(self, groups: Sequence[WindowGroup]) -> tuple[Tensor, dict[str, float], Geometry]:
        """The loss of two views of each window, its parts, the views' geometry; the mixture learns the first ones."""
        config, generator, task, objective = self.config, self._generator, self._loss.config.task, self.objective
        own = batch_of(
            groups,
            self.model.segments,
            self._width,
            generator,
            config.augment,
            task,
            objective.key_segments,
            _IN_MEMORY * config.batch,
        )
        if objective.virtual_negatives:
            count = config.virtual_negatives if task else 0
            own = replace(own, negatives=virtual_negatives(own.anchors, self.memory, count, generator))
            self.memory.learn(own.anchors.detach().numpy())
        batch = self._ranks.gather_batch(own)
        total, parts = batch_loss(batch, self._loss)
        return total, parts, geometry(batch.anchors.detach(), batch.positives.detach())

    def _sample(self) -> list[WindowGroup]:
        """The part of a batch that this rank draws: each device, on any rank, contributes equally many windows."""
        counts = self._ranks.gather(torch.tensor([len(self.buffer.counts())]))[0].tolist()
        devices, end = sum(counts), sum(counts[: self._ranks.rank + 1])
        size, start, total = self.config.batch_for(devices), end - counts[self._ranks.rank], max(devices, 1)
        share = size * end // total - size * start // total
        return self.buffer.sample_batch(self._rng, share) if share else []

    def _warm_up(self) -> None:
        """Shorten the first steps, because the optimiser does not know the scale of the gradients yet."""
        share = min(1.0, (self.steps + 1) / max(self.config.warm_up_steps, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = share * self.config.learning_rate

    @torch.no_grad()
    def _average(self) -> None:
        for average, current in zip(self.averaged.parameters(), self.model.module.parameters(), strict=True):
            average.lerp_(current, 1.0 - self.config.ema)


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
