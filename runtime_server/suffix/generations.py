"""The last few generations, each with its bundle, its weights and the suffixes that complete its frames."""

from __future__ import annotations

import copy
import logging
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from runtime_edge.errors import BundleError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.model_id import model_number
from runtime_edge.formats.wire import NO_MODEL, FrameHeader
from runtime_server.suffix.activation_limits import ActivationLimit, activation_limits, within
from runtime_server.suffix.frame_codecs import FrameCodecs
from runtime_server.suffix.larger_encoder import AlignedEncoder, LargerEncoder
from runtime_server.suffix.suffix import Precision, ServedBlocks
from streamsplit_compile.encoder.graph import EncoderGraph
from streamsplit_compile.encoder.segment import split
from streamsplit_compile.encoder.selection import cuts_of

_LOG = logging.getLogger(__name__)
KEPT_GENERATIONS = 4
Tensors = Mapping[str, npt.NDArray[Any]]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class CutModel:
    """The encoder in torch and its segments, which share its parameters."""

    module: fx.GraphModule
    segments: Sequence[fx.GraphModule]
    """One for each block."""

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of the parameters and buffers, by name."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.module.state_dict().items()}


@dataclass(frozen=True)
class Generation:
    """One released state of the encoder."""

    bundle: Bundle
    model: CutModel
    served: ServedBlocks
    codecs: FrameCodecs
    larger: AlignedEncoder | None = None
    """The larger encoder that helps to complete windows sent as audio, if there is one."""
    adaptation: int = 0
    """The number that frames carry if an adaptation has changed the weights; 0: they are as compiled."""

    @cached_property
    def _limits(self) -> list[ActivationLimit]:
        return activation_limits(self.bundle.manifest.info, self.model.segments)

    def in_range(self, cut: int, activations: torch.Tensor) -> list[bool]:
        """For each activation of (n, ...) at a cut, whether sound can produce one as large (`activation_limits`)."""
        return within(self._limits[cut], activations)

    @cached_property
    def model_number(self) -> int:
        """The number that identifies its model in frames."""
        return self.adaptation or model_number(self.bundle.manifest)

    def made(self, header: FrameHeader) -> bool:
        """Whether a frame was made with this bundle; frames of version 1 do not say, and are trusted."""
        return header.model in (NO_MODEL, self.model_number)

    def trains_on(self, header: FrameHeader) -> bool:
        """Whether its blocks can learn from a frame: not behind a cut if an adapted device made it."""
        return header.cut == 0 or self.made(header)

    @property
    def number(self) -> int:
        """Its generation number."""
        return self.bundle.manifest.info.generation

    def decode(self, header: FrameHeader, payload: bytes) -> npt.NDArray[np.float32]:
        """The activation (rows, ...) of a frame. Raises FrameError."""
        return self.codecs.decode(header, payload)

    def complete(self, cut: int, activations: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, d) of activations (n * rows, ...) float32 at a cut, without gradients."""
        own = self.served.complete(cut, activations)
        return own if cut > 0 or self.larger is None else self.larger.embed(activations, own)


class Generations:
    """The newest generation and a few before it. Used from the ingest and the trainer threads."""

    def __init__(
        self,
        graph: EncoderGraph,
        kept: int = KEPT_GENERATIONS,
        precision: Precision = "float32",
        larger: LargerEncoder | None = None,
    ) -> None:
        self.graph = graph
        """The encoder of which all of them are states."""
        self._kept, self._precision, self._larger = kept, precision, larger
        self._lock = threading.Lock()
        self._by_number: dict[int, Generation] = {}
        self._protected: frozenset[int] = frozenset()

    def add(self, bundle: Bundle, tensors: Tensors) -> Generation:
        """Add a bundle with its weights; the oldest ones beyond the kept number are retired. Raises BundleError."""
        model = cut_model(self.graph, bundle, tensors)
        served, codecs = ServedBlocks(model.segments, self._precision), FrameCodecs(bundle)
        aligned = None if self._larger is None else self._larger.aligned(lambda windows: served.complete(0, windows))
        generation = Generation(bundle, model, served, codecs, aligned)
        if aligned is not None:
            _LOG.info(
                "generation %d: the larger encoder comes within a cosine of %.3f", generation.number, aligned.cosine
            )
        with self._lock:
            self._by_number[generation.number] = generation
            self._retire()
        return generation

    def adapted(self, generation: Generation, tensors: Tensors, adaptation: int) -> Generation:
        """A generation with other weights, which frames name by the number of an adaptation. It is not kept here.

        Raises BundleError if the weights do not fit.
        """
        model = cut_model(self.graph, generation.bundle, tensors)
        served = ServedBlocks(model.segments, self._precision)
        return replace(generation, model=model, served=served, adaptation=adaptation)

    def protect(self, numbers: Iterable[int]) -> None:
        """Protect the generations that devices are told to run from retirement, however old they are."""
        with self._lock:
            self._protected = frozenset(numbers)
            self._retire()

    def get(self, number: int) -> Generation | None:
        """The generation with this number, or None if it is retired or was never released."""
        with self._lock:
            return self._by_number.get(number)

    def kept(self) -> list[Generation]:
        """All generations whose frames are still completed, the oldest first."""
        with self._lock:
            return [self._by_number[number] for number in sorted(self._by_number)]

    @property
    def newest(self) -> Generation:
        """The generation with the highest number."""
        with self._lock:
            return self._by_number[max(self._by_number)]

    def _retire(self) -> None:
        for number in sorted(self._by_number)[: -self._kept]:
            if number not in self._protected:
                del self._by_number[number]


def cut_model(graph: EncoderGraph, bundle: Bundle, tensors: Tensors) -> CutModel:
    """The encoder, cut as in a bundle, with its own copy of the weights. Raises BundleError if they do not fit."""
    module = copy_module(graph.module)
    try:
        module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()})
    except RuntimeError as exc:
        reason = " ".join(str(exc).split())[:200]
        raise BundleError(f"{bundle.path}: weights do not fit the encoder ({reason})") from None
    own = EncoderGraph(module, graph.candidates, graph.dynamic_batch)
    return CutModel(module, split(own, cuts_of(graph.candidates, bundle.manifest, str(bundle.path))))


def copy_module(module: ModuleT) -> ModuleT:
    """A copy with its own parameters; parts that share parameters in `module` share them in the copy too."""
    with warnings.catch_warnings():
        # torch's own pytree warns about itself when an exported graph is copied.
        warnings.simplefilter("ignore", FutureWarning)
        return copy.deepcopy(module)
