"""The release gate: judges trained weights, and compiles, checks and signs them as a new generation."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime_edge.base.heap import give_memory_back
from runtime_edge.base.recent import Recent
from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.records.head import Head
from runtime_server.labels.head_clips import HeadClipsFolder
from runtime_server.labels.linear_probe import LinearProbe, ProbeScore
from runtime_server.releases.head_judge import UNASKED, HeadJudge, HeadScores
from runtime_server.releases.rollout import Rollout
from runtime_server.releases.update_pace import UpdatePace
from runtime_server.state.server_state import ServerState
from runtime_server.suffix.generations import CutModel, Generation, Generations, cut_model
from runtime_server.training.buffer import WindowGroup
from runtime_server.training.ranks import Ranks
from runtime_server.training.trainer import Judgement, Trainer
from streamsplit_compile.bundle.calibrate import CalibrationSet
from streamsplit_compile.bundle.compiler import changed_blocks, recompile
from streamsplit_compile.bundle.cut_assets.bottlenecks import PCA_WINDOWS
from streamsplit_compile.bundle.measure import ArrivedWindows, Reference
from streamsplit_compile.encoder.graph import EncoderGraph

_LOG = logging.getLogger(__name__)
_KEPT_OUTCOMES = 200


@dataclass(frozen=True)
class ReleaseConfig:
    """When a release is attempted, and what it must not make worse."""

    every_steps: int = 50
    every_s: float | None = None
    """Also attempt one if this many seconds have passed since the last attempt and anything has been trained."""
    least_s: float = 6 * 3600.0
    """Minimum number of seconds between two releases: every device fetches each one."""
    tolerance: float = 0.02
    """Share by which the median device's held-out loss may exceed that of the present release; if negative, by which it
    must be lower."""
    device_tolerance: float = 0.1
    """Share by which the loss of a single device may rise before it counts as worse off."""
    worse_off: float = 0.25
    """Share of the devices that may be worse off; with three or more devices, one always may."""
    least_rank: float = 0.5
    """Share of the present release's diversity (effective rank of embeddings, above 1) that must be left: a collapsed
    encoder has the loss of guessing, which is less than that of an untrained one."""
    least_uniformity: float = 0.1
    """Share of the present release's uniformity (at most 0, a single point) that must be left, also against
    collapse."""
    geometry_tolerance: float = 0.2
    """How much alignment and uniformity of the held-out windows may both rise. Lower is better for either; one may
    improve at the expense of the other."""
    probe_tolerance: float = 0.02
    """How much accuracy on labelled recordings may be lost, if there are any."""
    bottleneck_steps: int = 0
    """For each release, trained bottlenecks are trained further by this many steps, on what devices sent."""


@dataclass(frozen=True)
class Quality:
    """The quality of some weights; all except the linear probe is measured on held-out windows of the stream."""

    loss: float
    alignment: float
    uniformity: float
    effective_rank: float
    probe_accuracy: float | None = None
    knn_accuracy: float | None = None
    device_losses: tuple[float, ...] = ()
    """Held-out loss of each device; the other figures are those of the median device."""

    @classmethod
    def of(cls, judgements: Sequence[Judgement], score: ProbeScore | None) -> Quality:
        """Combine the judgements of all devices."""
        losses = tuple(judgement.loss for judgement in judgements)
        shapes = [judgement.geometry for judgement in judgements]
        return cls(
            loss=_median(losses),
            alignment=_median(shape.alignment for shape in shapes),
            uniformity=_median(shape.uniformity for shape in shapes),
            effective_rank=_median(shape.effective_rank for shape in shapes),
            probe_accuracy=None if score is None else score.accuracy,
            knn_accuracy=None if score is None else score.knn_accuracy,
            device_losses=losses,
        )


@dataclass(frozen=True)
class ReleaseOutcome:
    """The result of one attempt."""

    generation: int
    released: bool
    steps: int
    """Training steps done by then."""
    reason: str
    changed_blocks: tuple[str, ...]
    before: Quality | None
    """The same measures for the generation that devices run."""
    after: Quality | None
    """The measures of the candidate weights."""
    seconds: float
    heads: HeadScores = UNASKED
    """Scores of the heads that devices use; these are judged last."""


class ReleaseGate:
    """Turns the trainer's averaged weights into the next generation, unless they are worse."""

    def __init__(
        self,
        graph: EncoderGraph,
        generations: Generations,
        trainer: Trainer,
        state: ServerState,
        windows: CalibrationSet,
        key: minisign.SecretKey,
        config: ReleaseConfig,
        rollout: Rollout,
        ranks: Ranks | None = None,
        probe: LinearProbe | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._outcomes: Recent[ReleaseOutcome] = Recent(_KEPT_OUTCOMES)
        self.counts: Counter[str] = Counter()
        """Attempts since the start, by "released" or the reason against it."""
        self._pace = UpdatePace(rollout)
        self._rollout, self._ranks, self._probe = rollout, ranks or Ranks(), probe
        self._probed: tuple[int, ProbeScore] | None = None
        self._graph, self._generations, self._trainer = graph, generations, trainer
        self._state, self._windows, self._key = state, windows, key
        self._clock = clock
        self.head_scores = UNASKED
        """Scores from the last attempt to which there was no other objection."""
        self._worse: list[str] = []
        """Heads because of which the last attempt failed."""
        self.heads = HeadJudge(HeadClipsFolder(state.head_clips))
        """Judges heads, and refits them to what is released."""
        self._last_step, self._last_time = trainer.steps, clock()

    @property
    def outcomes(self) -> list[ReleaseOutcome]:
        """The last attempts, the oldest first."""
        return self._outcomes.all()

    @property
    def due(self) -> bool:
        """Whether enough has been trained since the last attempt, and nothing prevents a release now."""
        steps, seconds = self._trainer.steps - self._last_step, self._clock() - self._last_time
        timely = self.config.every_s is not None and seconds >= self.config.every_s and steps > 0
        enough = steps >= self.config.every_steps or timely
        if not enough or self._rollout.released_within(self.config.least_s):
            return False
        return not self._rollout.held and not self._pace.held

    def attempt(self, pushed: Callable[[], Mapping[str, Head]] = dict) -> Generation | None:
        """Judge the averaged weights and, if they are no worse, compile and keep them as the next generation.

        All ranks judge, and the first one does the rest; it calls `pushed` for the heads by recipient. Raises
        CheckFailed if the recompiled blocks do not reproduce the weights, FormatError if a head's clips are damaged,
        and what `pushed` raises.
        """
        self._last_step, self._last_time = self._trainer.steps, self._clock()
        started = self._last_time
        newest = self._base()
        tensors = self._trainer.averaged_tensors()
        candidate = cut_model(self._graph, newest.bundle, tensors)
        judged = self._trainer.judge([newest.model, candidate])
        if not self._ranks.first:
            return None
        # Never a number that devices may know as another bundle.
        number = max(self._generations.newest.number, self._rollout.highest) + 1
        if judged is None:
            self._note(number, None, "too few held-out windows", started)
            return None
        before, after = self._qualities(newest, candidate, judged)
        objection = self.objection(before, after)
        if objection:
            self._note(number, None, objection, started, before, after)
            return None
        self.head_scores = heads = self.heads.judge(pushed(), newest, candidate)
        if heads.objection:
            self._note(number, None, heads.objection, started, before, after, heads)
            return None
        bundle = recompile(
            newest.bundle,
            tensors,
            self._state.bundle_path(number),
            generation=number,
            windows=self._windows.windows,
            reference=Reference(
                candidate.segments,
                self._windows.unseen,
                recordings=self._windows.recordings,
                arrived=self._arrived(),
            ),
            calibration=self._windows.said,
            key=self._key,
        )
        give_memory_back()
        # On disk before any device can hear of it, so that a restarted server can complete its frames.
        self._state.save_weights(number, tensors)
        generation = self._generations.add(bundle, tensors)
        self._note(number, (newest.bundle, bundle), "held-out quality is as it must be", started, before, after, heads)
        return generation

    def _arrived(self) -> ArrivedWindows:
        """Plain activations of this rank's devices: some to fit bottlenecks to, others, never trained on, to judge."""
        fit, unseen = self._trainer.plain_windows(PCA_WINDOWS)
        return ArrivedWindows(_by_cut(fit), _by_cut(unseen), self.config.bottleneck_steps)

    def _base(self) -> Generation:
        """The generation that the next one follows; the first rank decides it, and has it on disk."""
        own = self._generations.get(self._rollout.base) or self._generations.newest
        (number,) = self._ranks.sum(own.number if self._ranks.first else 0)
        found = self._generations.get(number)
        return found or self._generations.add(*self._state.load(number))

    def _qualities(
        self, newest: Generation, candidate: CutModel, judged: Sequence[Sequence[Judgement]]
    ) -> tuple[Quality, Quality]:
        """Quality of the generation in use and of the candidate; a generation's linear probe is measured only once."""
        if self._probe is None:
            return Quality.of(judged[0], None), Quality.of(judged[1], None)
        if self._probed is None or self._probed[0] != newest.number:
            self._probed = newest.number, self._probe.score(newest.model)
        return Quality.of(judged[0], self._probed[1]), Quality.of(judged[1], self._probe.score(candidate))

    def objection(self, before: Quality, after: Quality) -> str:
        """Why weights must not be released; empty if they may be. NaN counts as worse."""
        config = self.config
        changes = _changes(before.device_losses or (before.loss,), after.device_losses or (after.loss,))
        if not _median(changes) <= config.tolerance:
            return "held-out loss rose" if config.tolerance >= 0 else "held-out loss did not fall enough"
        allowed = max(len(changes) * config.worse_off, 1 if len(changes) > 2 else 0)
        if sum(change > config.device_tolerance for change in changes) > allowed:
            return "held-out loss rose for too many devices"
        diverse = after.effective_rank - 1 >= (before.effective_rank - 1) * config.least_rank  # 1 is no diversity
        if not (diverse and after.uniformity <= before.uniformity * config.least_uniformity):
            return "embeddings are collapsing"
        aligned = after.alignment <= before.alignment + config.geometry_tolerance
        spread = after.uniformity <= before.uniformity + config.geometry_tolerance
        if math.isnan(after.alignment) or not (aligned or spread):
            return "held-out alignment and uniformity got worse"
        told, tells = before.probe_accuracy, after.probe_accuracy
        if told is not None and tells is not None and tells < told - config.probe_tolerance:
            return "accuracy on the labelled recordings fell"
        return ""

    def _note(
        self,
        number: int,
        bundles: tuple[Bundle, Bundle] | None,
        reason: str,
        started: float,
        before: Quality | None = None,
        after: Quality | None = None,
        heads: HeadScores = UNASKED,
    ) -> None:
        changed = () if bundles is None else tuple(changed_blocks(bundles[0].manifest, bundles[1].manifest))
        outcome = ReleaseOutcome(
            generation=number,
            released=bundles is not None,
            steps=self._last_step,
            reason=reason,
            changed_blocks=changed,
            before=before,
            after=after,
            seconds=self._clock() - started,
            heads=heads,
        )
        self._outcomes.append(outcome)
        worse = [score.head for score in heads.worse]
        self.counts["released" if outcome.released else "a pushed head got worse" if worse else reason] += 1
        _LOG.info("%s", outcome)
        if worse and worse != self._worse:  # once, not at every attempt
            _LOG.warning("generation %d is not released: %s", number, reason)
        self._worse = worse


def _by_cut(groups: Sequence[WindowGroup]) -> dict[int, Tensor]:
    """Activations (n, ...) float32 by cut, from any generation."""
    found: dict[int, list[Tensor]] = {}
    for group in groups:
        found.setdefault(group.cut, []).append(group.activations.flatten(0, 1).float())
    return {cut: torch.cat(activations) for cut, activations in found.items()}


def _changes(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """Each device's relative change of loss; infinite if it is not a number."""
    changes = []
    for old, new in zip(before, after, strict=True):
        change = 0.0 if new == old else (new - old) / max(abs(old), 1e-9)
        changes.append(math.inf if math.isnan(change) else change)
    return changes


def _median(numbers: Iterable[float]) -> float:
    """The median; NaN counts as the largest."""
    ordered = sorted(numbers, key=lambda number: (math.isnan(number), number))
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return low if low == high else (low + high) / 2


def first_model(graph: EncoderGraph, generation: Generation) -> CutModel:
    """A copy of a generation's weights to train on."""
    return cut_model(graph, generation.bundle, generation.model.tensors())
