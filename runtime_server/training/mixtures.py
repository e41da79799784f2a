"""The mixture of every device as the server knows it, synchronised now and then (docs/method.md, section 4)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from runtime_edge.formats.mixture import Components, encode_components
from runtime_edge.policy.memory import COMPONENTS, GaussianMemory

T_SYNC = 100
MOST_MOVED = 4
"""Components that a device is told of at once: those that have moved most, and the others next time."""
MOVED = 0.05
"""A component has moved when its mean has by so much of the spread of all windows, or its weight by so much."""
MAX_MEMORIES = 4096
MAX_WAITING = 8
"""Windows of a device that wait to be learnt, at most."""

Array = npt.NDArray[np.float32]


@dataclass
class _DeviceMixture:
    memory: GaussianMemory
    boot: str
    """Of the run that was told; another one begins from nothing."""
    told: tuple[Array, Array]
    """Means and weights as the device has them, unless it has learnt otherwise since."""
    waiting: list[Array] = field(default_factory=list)
    """Embeddings that it has yet to learn, in order."""

    def learn(self) -> None:
        for embedding in self.waiting:
            self.memory.learn(embedding)
        self.waiting.clear()

    def moved(self) -> bytes:
        """Of the components that the device does not know as they are, those that have moved most; often nothing."""
        memory, (means, weights) = self.memory, self.told
        far = ((memory.means - means) ** 2).sum(axis=1) / memory.spread + abs(memory.weights - weights)
        far[memory.weights < MOVED / COMPONENTS] = 0.0  # hardly any window is of it
        places = np.sort(np.argsort(-far)[:MOST_MOVED])
        places = places[far[places] > MOVED]
        if not places.size:
            return b""
        means[places], weights[places] = memory.means[places], memory.weights[places]
        deviations = np.sqrt(memory.variances[places])
        found = Components(places.astype(np.uint8), memory.weights[places], memory.means[places], deviations)
        return encode_components(found)


class Mixtures:
    """The device heard of longest ago is forgotten first, beyond `max_memories` of them. Used by one thread.

    Learning takes longer than all else that a frame's answer needs from this thread, and few answers depend on it: what
    is heard is learnt in `catch_up`, or before that when the mixture is due or too much waits. It learns the same.
    """

    def __init__(self, max_memories: int = MAX_MEMORIES) -> None:
        self._max_memories = max_memories
        self._devices: OrderedDict[str, _DeviceMixture] = OrderedDict()
        self._behind: dict[str, None] = {}
        self._room = np.empty((2, COMPONENTS, 0), np.float32)

    def add(self, device: str, embedding: Array, boot: str = "") -> bytes:
        """Take an embedding float32[d]; after every `T_SYNC` of them what has moved for a run (`boot`) of the device.

        Without `boot` all parameters, for a device of 0.1.0. Otherwise nothing.
        """
        mixture = self._devices.pop(device, None) or self._new(embedding.size)
        if mixture.boot != boot:
            mixture.boot, mixture.told = boot, self._new(embedding.size).told
        self._devices[device] = mixture
        if len(self._devices) > self._max_memories:
            self._behind.pop(self._devices.popitem(last=False)[0], None)
        memory, before = mixture.memory, mixture.memory.windows
        mixture.waiting.append(embedding.copy())  # it is a row of a whole batch
        due = (before + len(mixture.waiting)) // T_SYNC > before // T_SYNC
        if not due and len(mixture.waiting) < MAX_WAITING:
            self._behind[device] = None
            return b""
        mixture.learn()
        self._behind.pop(device, None)
        if memory.windows == before or memory.windows % T_SYNC:
            return b""
        return mixture.moved() if boot else memory.to_bytes()

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
        return _DeviceMixture(memory, "", (memory.means.copy(), memory.weights.copy()))
