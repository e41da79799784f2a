"""One recipient's encoder, trained on what the recipient hears now."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from runtime_edge.formats.records.adaptation import Adaptation, AdaptedLayer
from runtime_server.adaptation.adaptation_judge import AdaptationJudge, LabelledWindows
from runtime_server.adaptation.adaptation_record import make_adaptation
from runtime_server.adaptation.classifier import Classifier
from runtime_server.adaptation.methods import Method
from runtime_server.adaptation.methods.adaptation_method import BATCH
from runtime_server.adaptation.norm_changes import NormChanges, adapted_tensors, layer_blocks
from runtime_server.adaptation.recipient import Recipient
from runtime_server.adaptation.trained_encoders import TrainedEncoder, served_encoder
from runtime_server.suffix.generations import CutModel, Generation, cut_model
from streamsplit_compile.encoder.graph import EncoderGraph

_LOG = logging.getLogger(__name__)
HELD_OUT = 8
"""One in this many windows judges and never trains."""
LEAST_JUDGES, MAX_JUDGES = 16, 64
"""How many such windows an adaptation needs, and how many are kept, the latest ones."""
_CHECKED = 16
"""Of these, how many each variant is compared with the float encoder on."""

MakeMethod = Callable[[Generation, Recipient, Classifier, LabelledWindows | None, int], Method]
"""Makes the method that moves a classifier's layers, behind a cut. It should not forget the labelled sounds."""


class Student:
    """Trains, and offers an adaptation when it is good enough. For one thread.

    Args:
        recipient: for whom it is.
        generation: the weights that its devices run.
        encoder: the graph of the encoder.
        make_method: makes the method, again after each reset.
        labelled: sounds with known labels, which judge.
        sent: the layers that its devices have now.
        least_s: the shortest time between two attempts, s.
        start: the cut of the bundle at which its devices send; the layers behind it are trained. Without such layers
            windows are counted and nothing else happens.
    """

    def __init__(
        self,
        recipient: Recipient,
        generation: Generation,
        encoder: EncoderGraph,
        make_method: MakeMethod,
        labelled: LabelledWindows | None,
        sent: Sequence[AdaptedLayer],
        least_s: float,
        start: int = 0,
    ) -> None:
        self.recipient, self.generation, self.start = recipient, generation, start
        self.counts: Counter[str] = Counter()
        """Windows by use, and attempts by outcome."""
        self._graph, self._make_method, self._labelled, self._least_s = encoder, make_method, labelled, least_s
        trained = served_encoder(generation, encoder, start)
        blocks = layer_blocks(generation.bundle, generation.model.segments, start)
        self._idle = not blocks
        self._changes = NormChanges(trained, blocks, TrainedEncoder.LAYERS)
        self._classifier = Classifier(trained, recipient.head, [TrainedEncoder.LAYERS + name for name in blocks])
        self._judge = AdaptationJudge(recipient.head, generation.model, generation.larger, labelled, start)
        self._waiting: list[Tensor] = []
        self._judges: deque[Tensor] = deque(maxlen=MAX_JUDGES)
        self._heard = self._steps = 0
        self._attempted_at: float | None = None
        self._sent = tuple(sent)
        self._reset(self._sent)

    def hear(self, window: Tensor) -> None:
        """Take a window (1, ...) float32 at its cut; every 32nd of those that train is followed by a step."""
        if self._idle:
            self.counts["unused"] += 1
            return
        self._heard += 1
        if self._heard % HELD_OUT == 0:
            self._judges.append(window[0].half())
            self.counts["judging"] += 1
            return
        self._waiting.append(window[0])
        if len(self._waiting) < BATCH:
            return
        self._method.update(torch.stack(self._waiting))
        self._changes.project()
        self._waiting.clear()
        self._steps += 1
        self.counts["training"] += BATCH

    def attempt(self, now: float) -> Adaptation | None:
        """An adaptation to send, if one is due, differs from what was sent and is good enough; `now` in s.

        If what its devices have has become worse than the compiled weights, it takes that back.
        """
        early = self._attempted_at is not None and now - self._attempted_at < self._least_s
        if early or not self._steps or len(self._judges) < LEAST_JUDGES:
            return None
        self._attempted_at, self._steps = now, 0
        layers = self._changes.rounded()
        if layers == self._sent:
            return None
        windows = torch.stack(list(self._judges)).float()
        adapted = self._adapted(layers)
        if objection := self._judge.objection(adapted, windows):
            return self._refuse(objection, windows)
        return self._send(adapted, layers, windows)

    def _refuse(self, objection: str, windows: Tensor) -> Adaptation | None:
        """Go back to what was sent, or if that has become bad as well, to the compiled weights."""
        self.counts["refused"] += 1
        _LOG.warning("adaptation for %s is not sent: %s", self.recipient.key, objection)
        if not self._sent or not self._judge.objection(self._adapted(self._sent), windows):
            self._reset(self._sent)
            return None
        self.counts["withdrawn"] += 1
        self._reset(())
        return self._send(self.generation.model, (), windows)

    def _send(self, adapted: CutModel, layers: Sequence[AdaptedLayer], windows: Tensor) -> Adaptation | None:
        made = make_adaptation(self.generation, adapted, layers, windows[-_CHECKED:], self.start)
        if made is None:
            self.counts["refused"] += 1
            _LOG.warning("adaptation for %s is not sent: no compiled variant follows it", self.recipient.key)
            self._reset(self._sent)
            return None
        self._sent = tuple(layers)
        return made

    def _adapted(self, layers: Sequence[AdaptedLayer]) -> CutModel:
        """The encoder as the devices would run it."""
        tensors = adapted_tensors(self.generation.model.tensors(), layers)
        return cut_model(self._graph, self.generation.bundle, tensors)

    def _reset(self, layers: Sequence[AdaptedLayer]) -> None:
        """Go on from these layers, with a new method, which takes the compiled ones for where everything began."""
        if self._idle:
            return
        self._changes.load(())
        self._method = self._make_method(self.generation, self.recipient, self._classifier, self._labelled, self.start)
        self._changes.load(layers)
