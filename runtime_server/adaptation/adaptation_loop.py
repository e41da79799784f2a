"""The thread that adapts: takes windows from a queue, trains each recipient's encoder, and offers adaptations."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from runtime_edge.formats.records.adaptation import Adaptation
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
        self._queue: queue.Queue[tuple[str, int, Tensor]] = queue.Queue(MAX_WAITING)
        self._recipients: Mapping[str, Recipient] = {}
        self._students: OrderedDict[str, Student] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._alike = AlikeDevices()
        self._halt = threading.Event()

    def hear(self, device: str, generation: int, window: Tensor) -> None:
        """Take a window (1, samples) float32; it is dropped if too many are waiting."""
        try:
            self._queue.put_nowait((device, generation, window))
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
                device, number, window = self._queue.get(timeout=_IDLE_S)
            except queue.Empty:
                continue
            began = self._clock()
            self._take(device, number, window, offer)
            self._halt.wait((self._clock() - began) * self._rest)

    def stop(self) -> None:
        """Let the step in progress finish and end."""
        self._halt.set()

    def _take(self, device: str, number: int, window: Tensor, offer: Offer) -> None:
        recipient, generation = self._recipients.get(device), self._generations.get(number)
        if recipient is None or generation is None:
            self._counts["unused"] += 1
            return
        if self._config.scope == "alike":
            self._alike.hear(device, recipient.target, window[0].numpy())
        try:
            student = self._student(recipient, generation)
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

    def _student(self, recipient: Recipient, generation: Generation) -> Student | None:
        """The student of a recipient; None for windows of an earlier generation than it learns from."""
        key = recipient.key
        student = self._students.get(key)
        if student is not None and student.generation.number > generation.number:
            return None
        if student is None or student.generation.number < generation.number or student.recipient != recipient:
            self._drop(key)
            student = self._students[key] = self._new(recipient, generation)
        self._students.move_to_end(key)
        while len(self._students) > self._config.devices:
            self._drop(next(iter(self._students)))
        return student

    def _new(self, recipient: Recipient, generation: Generation) -> Student:
        """A student that goes on from what its devices have, if that is for the same weights."""
        latest = self._known.latest(recipient.key)
        sent = latest.layers if latest is not None and fits(latest, generation) else ()
        labelled = self._labelled(recipient.head)
        return Student(
            recipient, generation, self._generations.graph, self._make_method, labelled, sent, self._config.least_s
        )

    def _drop(self, key: str) -> None:
        """Forget a student, not what it has counted."""
        if (student := self._students.pop(key, None)) is not None:
            self._counts.update(student.counts)
