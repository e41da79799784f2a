"""The mixture of every device as the server knows it, synchronised now and then (docs/method.md, section 4).

A device learns from each window that it gets or makes the embedding of, and the server learns the same from the same
windows. So a device is told only of components that it cannot know: those that windows moved whose embeddings it never
had, and all that earlier runs of it have left, since a run begins from nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from runtime_edge.formats.mixture import Components, encode_components
from runtime_edge.policy.memory import COMPONENTS, GaussianMemory

T_SYNC = 100
MOST_MOVED = 4
"""The most components that are sent to a device at once: those that moved most; the others follow next time."""
MOVED = 0.05
"""A component has moved when its mean has by so much of the spread of all windows, or its weight by so much."""
MAX_MEMORIES = 4096
MAX_WAITING = 8
"""Windows of a device that wait to be learnt, at most."""

Array = npt.NDArray[np.float32]


class _Heard(NamedTuple):
    """A window that is yet to be learnt."""

    embedding: Array
    known: bool
    """Whether the device has the embedding, too, and learns from it."""


@dataclass
class _DeviceMixture:
    memory: GaussianMemory
    boot: str
    """Of the run that is told; another one begins from nothing. Empty: a device of 0.1.0."""
    told: tuple[Array, Array]
    """Means and weights of the `foreign` components as the device has them, unless it has learnt otherwise since."""
    foreign: npt.NDArray[np.bool_]
    """Components that the device cannot know as they are."""
    waiting: list[_Heard] = field(default_factory=list)
    """In order."""
    heard: int = 0
    """Windows."""
    is_due: bool = False
    """Whether the device is to be told as soon as it can be."""

    def learn(self) -> None:
        for embedding, known in self.waiting:
            if known or not self.boot:
                self.memory.learn(embedding)
            else:
                self._learn_foreign(embedding)
        self.waiting.clear()

    def make_room(self) -> None:
        """Too much waits: forget the oldest window that the device has learnt itself, or learn all."""
        known = next((place for place, heard in enumerate(self.waiting) if heard.known), None)
        if known is None:
            self.learn()
        else:
            del self.waiting[known]

    @property
    def may_tell(self) -> bool:
        """Whether there may be something that the device cannot know."""
        return not self.boot or bool(self.foreign.any()) or not all(heard.known for heard in self.waiting)

    def moved(self) -> bytes:
        """Of the components that the device does not know as they are, those that have moved most; often nothing."""
        memory, (means, weights) = self.memory, self.told
        far = ((memory.means - means) ** 2).sum(axis=1) / memory.spread + abs(memory.weights - weights)
        far[~self.foreign | (memory.weights < MOVED / COMPONENTS)] = 0.0  # hardly any window is of the latter
        places = np.sort(np.argsort(-far)[:MOST_MOVED])
        places = places[far[places] > MOVED]
        if not places.size:
            return b""
        self.foreign[places] = False
        deviations = np.sqrt(memory.variances[places])
        found = Components(places.astype(np.uint8), memory.weights[places], memory.means[places], deviations)
        return encode_components(found)

    def _learn_foreign(self, embedding: Array) -> None:
        memory, (means, weights) = self.memory, self.told
        before = memory.means.copy(), memory.weights.copy()
        memory.learn(embedding)
        changed = (memory.means != before[0]).any(axis=1) & ~self.foreign
        means[changed], weights[changed] = before[0][changed], before[1][changed]
        self.foreign |= changed


class Mixtures:
    """Beyond `max_memories` devices the least recently active is forgotten. Used by one thread.

    Learning takes longer than all else that a frame's answer needs from this thread, and few answers depend on it: what
    is heard is learnt in `catch_up`, or before that when the device is told. A server that is always behind learns only
    some of the windows that devices learn themselves: what is left then serves their next runs.
    """

    def __init__(self, max_memories: int = MAX_MEMORIES) -> None:
        self._max_memories = max_memories
        self._devices: OrderedDict[str, _DeviceMixture] = OrderedDict()
        self._behind: dict[str, None] = {}
        self._room = np.empty((2, COMPONENTS, 0), np.float32)

    def add(self, device: str, embedding: Array, boot: str = "", answered: bool = True) -> bytes:
        """Take an embedding float32[d]; after every `T_SYNC` of them what a run (`boot`) of the device cannot know.

        Without `boot` all parameters, for a device of 0.1.0. Otherwise nothing. A device that is answered has the
        embedding or gets it; one that is not is told with the next answer.
        """
        mixture = self._devices.pop(device, None) or self._new(embedding.size)
        if mixture.boot != boot:
            mixture.learn()
            mixture.boot, mixture.told = boot, self._new(embedding.size).told
            mixture.foreign[:] = mixture.memory.windows > 0
        self._devices[device] = mixture
        if len(self._devices) > self._max_memories:
            self._behind.pop(self._devices.popitem(last=False)[0], None)
        mixture.heard += 1
        mixture.is_due |= mixture.heard % T_SYNC == 0
        known = answered and bool(boot)
        mixture.waiting.append(_Heard(embedding.copy(), known))  # it is a row of a whole batch
        is_told = mixture.is_due and answered
        if is_told and mixture.may_tell:
            mixture.learn()
        elif len(mixture.waiting) >= MAX_WAITING:
            mixture.make_room()
        if mixture.waiting:
            self._behind[device] = None
        else:
            self._behind.pop(device, None)
        if not is_told:
            return b""
        mixture.is_due = False
        return mixture.moved() if boot else mixture.memory.to_bytes()

    def catch_up(self, until: Callable[[], bool] = lambda: False) -> None:
        """Learn what was heard, device by device, until there is something more urgent to do."""
        while self._behind and not until():
            device = next(iter(self._behind))
            del self._behind[device]
            self._devices[device].learn()

    def _new(self, dim: int) -> _DeviceMixture:
        if self._room.shape[2] != dim:
            self._room = np.empty((2, COMPONENTS, dim), np.float32)
        memory = GaussianMemory(dim=dim, room=self._room)
        told = memory.means.copy(), memory.weights.copy()
        return _DeviceMixture(memory, "", told, np.zeros(COMPONENTS, bool))
