"""The encoders that adaptation trains, each with weights of its own: the devices' encoder and its teacher."""

from __future__ import annotations

from torch import Tensor, nn

from runtime_edge.formats.records.head import Head
from runtime_server.adaptation.classifier import Classifier
from runtime_server.suffix.generations import copy_module
from runtime_server.suffix.larger_encoder import AlignedEncoder
from streamsplit_compile.encoder.graph import EncoderGraph
from streamsplit_compile.encoder.segment import run_segments, split


class TrainedEncoder(nn.Module):
    """A copy of a whole encoder; one that was exported for a batch of one runs window by window."""

    LAYERS = "graph."
    """What its parameters' names have in front of the encoder's own."""

    def __init__(self, encoder: EncoderGraph) -> None:
        super().__init__()
        own = EncoderGraph(copy_module(encoder.module), encoder.candidates, encoder.dynamic_batch)
        (self.graph,) = split(own, [own.candidates[0], own.candidates[-1]])

    def forward(self, windows: Tensor) -> Tensor:
        """Embeddings (n, d) of windows (n, samples) float32."""
        return run_segments([self.graph], windows)


class _Mapped(nn.Module):
    """A copy of the larger encoder, followed by the map to a generation's embeddings, which stays as it is."""

    def __init__(self, larger: EncoderGraph, aligned: AlignedEncoder) -> None:
        super().__init__()
        self.larger, self._aligned = TrainedEncoder(larger), aligned

    def forward(self, windows: Tensor) -> Tensor:
        """The generation's embeddings (n, d), of unit norm, of windows (n, samples) float32."""
        return self._aligned.mapped(self.larger(windows))


def teacher(larger: EncoderGraph, aligned: AlignedEncoder, head: Head) -> Classifier:
    """A teacher: the larger encoder, its map to the devices' embeddings, and their head."""
    return Classifier(_Mapped(larger, aligned), head)
