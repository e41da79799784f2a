"""The encoders that adaptation trains, each with weights of its own: the devices' encoder and its teacher.

Of a device that sends no audio, what is behind the cut at which it sends is trained. The larger encoder cannot hear
that device: the encoder as it was compiled teaches instead.
"""

from __future__ import annotations

from torch import Tensor, nn

from runtime_edge.formats.records.head import Head
from runtime_server.adaptation.classifier import Classifier
from runtime_server.suffix.generations import Generation, copy_module
from runtime_server.suffix.larger_encoder import AlignedEncoder
from streamsplit_compile.encoder.graph import Candidate, EncoderGraph
from streamsplit_compile.encoder.segment import run_segments, split
from streamsplit_compile.encoder.selection import cuts_of


class TrainedEncoder(nn.Module):
    """A copy of an encoder, or of what is behind a cut; one that was exported for a batch of one runs one by one."""

    LAYERS = "graph."
    """What its parameters' names have in front of the encoder's own."""

    def __init__(self, encoder: EncoderGraph, start: Candidate | None = None) -> None:
        """`start`: the cut where it begins; None: at the waveform."""
        super().__init__()
        own = EncoderGraph(copy_module(encoder.module), encoder.candidates, encoder.dynamic_batch)
        (self.graph,) = split(own, [start or own.candidates[0], own.candidates[-1]])

    def forward(self, windows: Tensor) -> Tensor:
        """Embeddings (n, d) of windows (n, samples) float32, or of activations (n, ...) at the cut."""
        return run_segments([self.graph], windows)


class _Mapped(nn.Module):
    """A copy of the larger encoder, followed by the map to a generation's embeddings, which stays as it is."""

    def __init__(self, larger: EncoderGraph, aligned: AlignedEncoder) -> None:
        super().__init__()
        self.larger, self._aligned = TrainedEncoder(larger), aligned

    def forward(self, windows: Tensor) -> Tensor:
        """The generation's embeddings (n, d), of unit norm, of windows (n, samples) float32."""
        return self._aligned.mapped(self.larger(windows))


def served_encoder(generation: Generation, encoder: EncoderGraph, start: int) -> TrainedEncoder:
    """A generation's encoder from one of its bundle's cuts on. Raises BundleError if the encoder was cut otherwise."""
    graph = EncoderGraph(generation.model.module, encoder.candidates, encoder.dynamic_batch)
    cuts = cuts_of(encoder.candidates, generation.bundle.manifest, str(generation.bundle.path))
    return TrainedEncoder(graph, cuts[start])


def teacher(larger: EncoderGraph, aligned: AlignedEncoder, head: Head) -> Classifier:
    """A teacher for the labels of a head: the larger encoder and its own head, if that knows them, or else its map to
    the devices' embeddings and their head.
    """
    if (places := aligned.places(head)) is None:
        return Classifier(_Mapped(larger, aligned), head)
    assert aligned.head is not None
    return Classifier(TrainedEncoder(larger), aligned.head, places=places)
