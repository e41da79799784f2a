"""The mixture of every device as the server knows it, synchronised now and then (docs/method.md, section 4).

A device learns from each window whose embedding it computes or receives, and the server learns the same from the same
windows. So a device only needs to be told of components that it cannot know: those that were moved by windows whose
embeddings it never had, and everything learnt in its earlier runs, since a run starts from nothing.
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
"""A component has moved if its mean has moved by this share of the spread of all windows, or its weight by
this much."""
MAX_MEMORIES = 4096
MAX_WAITING = 8
"""Maximum number of a device's windows that wait to be learnt."""

Array = npt.NDArray[np.float32]


class _Heard(NamedTuple):
    """A window that has yet to be learnt."""

    embedding: Array
    known: bool
    """Whether the device has the embedding too, and learns from it."""


@dataclass
class _DeviceMixture:
    memory: GaussianMemory
    boot: str
    """The run that is being told; another one starts from nothing. Empty: a device of 0.1.0."""
    told: tuple[Array, Array]
    """Means and weights of the `foreign` components as the device has them, unless it has learnt otherwise since."""
    foreign: npt.NDArray[np.bool_]
    """Components whose present values the device cannot know."""
    waiting: list[_Heard] = field(default_factory=list)
    """In order of arrival."""
    heard: int = 0
    """Number of windows."""
    is_due: bool = False
    """Whether the device should be told as soon as possible."""

    def learn(self) -> None:
        for embedding, known in self.waiting:
            if known or not self.boot:
                self.memory.learn(embedding)
            else:
                self._learn_foreign(embedding)
        self.waiting.clear()

    def make_room(self) -> None:
        """Too many windows wait: forget the oldest one that the device has learnt itself, or learn all."""
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
        """Of the components whose present values the device does not know, those that have moved most; often none."""
        memory, (means, weights) = self.memory, self.told
        far = ((memory.means - means) ** 2).sum(axis=1) / memory.spread + abs(memory.weights - weights)
        far[~self.foreign | (memory.weights < MOVED / COMPONENTS)] = 0.0  # the latter: hardly any windows
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
    """The mixtures of all devices; beyond `max_memories`, the least recently active is forgotten. For one thread.

    Learning takes longer than everything else that this thread does for a frame's answer, and few answers depend on it.
    So windows are learnt in `catch_up`, or earlier if the device is to be told. A server that is always behind learns
    only some of the windows that devices learn themselves; what it leaves out matters only to their next runs.
    """

    def __init__(self, max_memories: int = MAX_MEMORIES) -> None:
        self._max_memories = max_memories
        self._devices: OrderedDict[str, _DeviceMixture] = OrderedDict()
        self._behind: dict[str, None] = {}
        self._room = np.empty((2, COMPONENTS, 0), np.float32)

    def add(self, device: str, embedding: Array, boot: str = "", answered: bool = True) -> bytes:
        """Add an embedding float32[d]; after every `T_SYNC` of them, returns what the device's run cannot know.

        Without `boot`, returns all parameters, for a device of 0.1.0. At other times returns nothing. A device that is
        answered has the embedding or receives it; one that is not answered is told with the next answer.
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
        mixture.waiting.append(_Heard(embedding.copy(), known))  # a copy, because it is a row of a whole batch
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
        """Learn waiting windows, device by device, until there is more urgent work."""
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
