"""The thread that adapts: takes windows from a queue, trains each recipient's encoder, and offers adaptations."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from runtime_edge.formats.records.adaptation import Adaptation
from runtime_edge.formats.wire import NO_MODEL
from runtime_server.adaptation.adaptation_judge import GetLabelled
from runtime_server.adaptation.alike import AlikeDevices
from runtime_server.adaptation.known_adaptations import KnownAdaptations, fits
from runtime_server.adaptation.recipient import Recipient, Scope
from runtime_server.adaptation.student import MakeMethod, Student
from runtime_server.suffix.generations import Generation, Generations

_LOG = logging.getLogger(__name__)
MAX_WAITING = 256
"""Windows in the queue; further ones are dropped."""
_IDLE_S = 0.2
MethodName = Literal["joint", "cema", "tent", "eata", "sar"]
Statistics = Literal["frozen", "blended"]
Offer = Callable[[Recipient, Adaptation], None]


@dataclass(frozen=True)
class AdaptConfig:
    """How a server adapts its devices."""

    method: MethodName | None = None
    """None: it does not."""
    scope: Scope = "device"
    """Who has an adaptation in common."""
    least_s: float = 60.0
    """The shortest time between two adaptations of one recipient, s."""
    devices: int = 8
    """Recipients that are trained at the same time."""
    statistics: Statistics = "frozen"
    """Whether batch norms keep their statistics, or also follow those of what is heard (`methods.blended`)."""


class _Heard(NamedTuple):
    """A window that waits."""

    device: str
    generation: int
    window: Tensor
    cut: int
    model: int


class AdaptationLoop:
    """Trains the recipients heard last. `hear` and `follow` may be called from any thread.

    Args:
        config: how many recipients, and how often each gets an adaptation.
        generations: the weights that devices run.
        known: what recipients have been sent.
        make_method: makes the method of a recipient.
        labelled: finds the sounds with labels that were kept for a head.
        share: of the time that training may take.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        config: AdaptConfig,
        generations: Generations,
        known: KnownAdaptations,
        make_method: MakeMethod,
        labelled: GetLabelled,
        share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._generations, self._known = config, generations, known
        self._make_method, self._labelled, self._clock = make_method, labelled, clock
        self._rest = 1.0 / share - 1.0
        self._queue: queue.Queue[_Heard] = queue.Queue(MAX_WAITING)
        self._recipients: Mapping[str, Recipient] = {}
        self._students: OrderedDict[str, Student] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._alike = AlikeDevices()
        self._halt = threading.Event()

    def hear(self, device: str, generation: int, window: Tensor, cut: int = 0, model: int = NO_MODEL) -> None:
        """Take a window (1, samples) float32, or its activation (1, ...); it is dropped if too many are waiting.

        Args:
            device: sent it.
            generation: the weights that it runs.
            window: its content.
            cut: of the bundle.
            model: what the frame names as its maker.
        """
        try:
            self._queue.put_nowait(_Heard(device, generation, window, cut, model))
        except queue.Full:
            self._counts["dropped"] += 1

    def follow(self, recipients: Mapping[str, Recipient]) -> None:
        """From now on the windows of these devices are trained on, each for its recipient."""
        self._recipients = dict(recipients)

    def founder(self, device: str) -> str:
        """The device that names the group of those that hear like this one."""
        return self._alike.founder(device)

    @property
    def counts(self) -> Counter[str]:
        """Windows by use (training, judging, dropped, unused), and attempts by outcome (refused, withdrawn)."""
        found = self._counts.copy()
        for student in list(self._students.values()):
            found.update(student.counts.copy())
        return found

    def run(self, offer: Offer) -> None:
        """Train until `stop`; `offer` is called with each adaptation that is good enough."""
        while not self._halt.is_set():
            try:
                heard = self._queue.get(timeout=_IDLE_S)
            except queue.Empty:
                continue
            began = self._clock()
            self._take(heard, offer)
            self._halt.wait((self._clock() - began) * self._rest)

    def stop(self) -> None:
        """Let the step in progress finish and end."""
        self._halt.set()

    def _take(self, heard: _Heard, offer: Offer) -> None:
        device, window, cut = heard.device, heard.window, heard.cut
        recipient, generation = self._recipients.get(device), self._generations.get(heard.generation)
        if recipient is None or generation is None:
            self._counts["unused"] += 1
            return
        if self._config.scope == "alike" and cut == 0:
            self._alike.hear(device, recipient.target, window[0].numpy())
        try:
            student = self._student(recipient, generation, cut) if self._trains(generation, heard) else None
            if student is None:
                self._counts["unused"] += 1
                return
            student.hear(window)
            adaptation = student.attempt(self._clock())
        except Exception:  # what one device sends must not end the adaptation of the others
            _LOG.exception("adaptation for %s starts over", recipient.key)
            self._drop(recipient.key)
            return
        if adaptation is not None:
            offer(recipient, adaptation)

    def _trains(self, generation: Generation, heard: _Heard) -> bool:
        """Whether there is something behind a window's cut, and nothing that was adapted in front of it."""
        if heard.cut == 0:
            return True
        inside = heard.cut < len(generation.bundle.manifest.info.blocks)
        return inside and self._known.is_compiled(generation, heard.model, heard.cut)

    def _student(self, recipient: Recipient, generation: Generation, cut: int) -> Student | None:
        """The student of a recipient; None for windows of an earlier generation or a later cut than it learns from."""
        key, number = recipient.key, generation.number
        student = self._students.get(key)
        same = student is not None and student.generation.number == number and student.recipient == recipient
        if student is not None and (student.generation.number > number or (same and student.start < cut)):
            return None
        if student is None or not same or student.start > cut:
            self._drop(key)
            student = self._students[key] = self._new(recipient, generation, cut)
        self._students.move_to_end(key)
        while len(self._students) > self._config.devices:
            self._drop(next(iter(self._students)))
        return student

    def _new(self, recipient: Recipient, generation: Generation, cut: int) -> Student:
        """A student that goes on from what its devices have, if that is for the same weights."""
        latest = self._known.latest(recipient.key)
        sent = latest.layers if latest is not None and fits(latest, generation) else ()
        labelled = self._labelled(recipient.head)
        least_s = self._config.least_s
        return Student(recipient, generation, self._generations.graph, self._make_method, labelled, sent, least_s, cut)

    def _drop(self, key: str) -> None:
        """Forget a student, not what it has counted."""
        if (student := self._students.pop(key, None)) is not None:
            self._counts.update(student.counts)
