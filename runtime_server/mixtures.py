"""The mixture of every device as the server knows it, which goes back to the device now and then (METHOD section 4)."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from runtime_edge.memory import GaussianMemory

T_SYNC = 100
_MAX_MEMORIES = 4096


class Mixtures:
    """The device heard of longest ago is forgotten first. Used by one thread."""

    def __init__(self) -> None:
        self._memories: OrderedDict[str, GaussianMemory] = OrderedDict()

    def learn(self, device: str, embedding: npt.NDArray[np.float32]) -> bytes:
        """Learn from an embedding float32[d]; the parameters after every `T_SYNC` of them, otherwise nothing."""
        memory = self._memories.pop(device, None) or GaussianMemory(dim=embedding.size)
        self._memories[device] = memory
        if len(self._memories) > _MAX_MEMORIES:
            self._memories.popitem(last=False)
        before = memory.windows
        memory.learn(embedding)
        return memory.to_bytes() if memory.windows > before and memory.windows % T_SYNC == 0 else b""
