"""The contract of an inference runtime: load one compiled block, run it on fixed buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from runtime_edge.errors import BackendError
from runtime_edge.formats.encoder.parts import VariantInfo
from runtime_edge.formats.graphs.onnx_norms import Layers

Array = npt.NDArray[np.float32]


class LoadedBlock(Protocol):
    """A block bound to its input and output buffers."""

    def run(self) -> None:
        """Read the input buffer, write the output buffer."""


class Backend(Protocol):
    """An inference runtime."""

    name: str

    def load(
        self, data: bytes, info: VariantInfo, source: Array, result: Array, where: str, layers: Layers | None = None
    ) -> LoadedBlock:
        """Load a block and bind it to two C-contiguous float32 buffers; `layers` says which norms give something else.

        Raises BackendError, before the runtime sees the bytes unless they are a graph of known operators.
        """


@dataclass(frozen=True)
class RuntimeOptions:
    """How an inference runtime is set up on a small device."""

    threads: int = 1
    providers: tuple[str, ...] = ("xnnpack", "cpu")
    """Execution providers, preferred first: the first that the runtime has is used, and the CPU for the rest."""


def check_shape(found: Any, expected: tuple[int, ...], where: str) -> None:
    """Raise BackendError unless a block's declared shape is the one in the manifest."""
    if tuple(found) != expected:
        raise BackendError(f"{where}: the block declares shape {list(found)}, the manifest {list(expected)}")
