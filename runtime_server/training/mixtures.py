"""The mixture of every device as the server knows it, synchronised now and then (docs/method.md, section 4)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from runtime_edge.policy.memory import COMPONENTS, GaussianMemory

T_SYNC = 100
MAX_MEMORIES = 4096
MAX_WAITING = 8
"""Windows of a device that wait to be learnt, at most."""

Array = npt.NDArray[np.float32]


@dataclass
class _DeviceMixture:
    memory: GaussianMemory
    waiting: list[Array] = field(default_factory=list)
    """Embeddings that it has yet to learn, in order."""

    def learn(self) -> None:
        for embedding in self.waiting:
            self.memory.learn(embedding)
        self.waiting.clear()


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

    def add(self, device: str, embedding: Array) -> bytes:
        """Take an embedding float32[d]; the parameters after every `T_SYNC` of them, otherwise nothing."""
        mixture = self._devices.pop(device, None) or _DeviceMixture(self._new(embedding.size))
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
        return memory.to_bytes() if memory.windows > before and memory.windows % T_SYNC == 0 else b""

    def catch_up(self, until: Callable[[], bool] = lambda: False) -> None:
        """Learn what was heard, device by device, until there is something more urgent to do."""
        while self._behind and not until():
            device = next(iter(self._behind))
            del self._behind[device]
            self._devices[device].learn()

    def _new(self, dim: int) -> GaussianMemory:
        if self._room.shape[2] != dim:
            self._room = np.empty((2, COMPONENTS, dim), np.float32)
        return GaussianMemory(dim=dim, room=self._room)
