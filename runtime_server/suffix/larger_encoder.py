"""A larger encoder for windows sent as audio, with embeddings like those of the devices' encoder (docs/cascade.md).

    larger = LargerEncoder.of(load_encoder(path), front_end, recordings, seed=0)
    answering = larger.aligned(embed)               # `embed` computes one generation's embeddings of windows
    answering.embed(windows, own)                   # (n, d) unit norm, instead of the generation's own

Ridge regression maps its embeddings to those that the generation computes for the same recordings, so heads, memories
and mixtures stay as they are. The answer combines both encoders, because they err on different windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from runtime_edge.errors import UsageError
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.formats.records.head import Head
from runtime_server.suffix.suffix import ServedBlocks
from streamsplit_compile.bundle.recordings import sample_windows
from streamsplit_compile.encoder.encoders import LoadedEncoder
from streamsplit_compile.encoder.graph import EncoderGraph
from streamsplit_compile.encoder.segment import split
from streamsplit_compile.exits.ridge import ridge

MAX_WINDOWS = 2048
LEAST_WINDOWS = 32
"""With fewer windows, a map is meaningless."""
PENALTY = 100.0
"""Ridge penalty of the map, in windows: inputs have unit variance."""
OWN_SHARE = 0.5
"""Weight of the generation's own embedding relative to the larger encoder's (measured: docs/cascade.md)."""
_HELD_OUT = 5
"""One in this many windows is held out from fitting the map, to judge it."""
_BATCH = 64
Embed = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AlignedEncoder:
    """A larger encoder, followed by a linear map to one generation's embeddings."""

    larger: Embed
    mean: Tensor
    """(D,) mean of the larger encoder's embeddings."""
    weights: Tensor
    """(D, d)."""
    bias: Tensor
    """(d,)."""
    cosine: float
    """Median cosine between mapped embeddings and the generation's, over the held-out windows."""
    head: Head | None = None
    """For the larger encoder's own embeddings; None: heads of the devices' encoder answer for the mapped ones."""

    def embed(self, windows: Tensor, own: Tensor) -> Tensor:
        """Windows (n, samples) float32 and the generation's embeddings of them (n, d) -> (n, d) of unit norm."""
        return functional.normalize(self.mapped(self.larger(windows)) + OWN_SHARE * own, dim=1)

    def logits(self, windows: Tensor, head: Head) -> Tensor:
        """Logits (n, labels) of windows (n, samples) float32 for the labels of a head, by its own head if it can."""
        embeddings = self.larger(windows)
        if (places := self.places(head)) is None:
            return torch.from_numpy(head.logits(self.mapped(embeddings).numpy()))
        assert self.head is not None
        return torch.from_numpy(self.head.logits(embeddings.numpy()))[:, places]

    def places(self, head: Head) -> list[int] | None:
        """Where its own head has the labels of another one; None if it has none or lacks one of them."""
        own = () if self.head is None or self.head.scores_by != head.scores_by else self.head.labels
        return [own.index(label) for label in head.labels] if set(head.labels) <= set(own) else None

    def mapped(self, embeddings: Tensor) -> Tensor:
        """The generation's embeddings (n, d), of unit norm, from the larger encoder's (n, D); differentiable."""
        return _mapped(embeddings, self.mean, self.weights, self.bias)


class LargerEncoder:
    """A larger encoder's embeddings of some recordings, from which a map to each generation is fitted.

    Args:
        embed: maps windows (n, samples) float32 to embeddings (n, D), without gradients.
        windows: (n, samples) float32 of recordings such as devices hear.
        graph: the uncut encoder, from which a teacher can be made.
        head: for its own embeddings.
    """

    def __init__(
        self, embed: Embed, windows: Tensor, graph: EncoderGraph | None = None, head: Head | None = None
    ) -> None:
        """Raises UsageError if there are too few windows."""
        if len(windows) < LEAST_WINDOWS:
            raise UsageError(f"--calibrate: {len(windows)} windows are too few for --larger; give {LEAST_WINDOWS}")
        self._embed, self.windows, self.graph, self._head = embed, windows, graph, head
        self._embeddings = in_batches(embed, windows)

    @classmethod
    def of(
        cls,
        larger: LoadedEncoder,
        front_end: FrontEndInfo,
        recordings: Path | None,
        seed: int,
        head: Head | None = None,
    ) -> LargerEncoder:
        """Embed up to 2048 windows of a file or folder.

        Raises UsageError if the encoder takes other windows or is not trained, if the head is for another encoder, or
        if there are no recordings, and SourceError.
        """
        if head is not None and head.encoder != larger.id:
            raise UsageError(f"--larger-head: it is for encoder {head.encoder}; --larger is {larger.id}")
        if recordings is None:
            raise UsageError("--larger: needs --calibrate with recordings like those that devices hear")
        if larger.untrained:
            raise UsageError(f"--larger: the weights of {larger.id} are random; give an encoder that is trained")
        asked = (front_end.sample_rate, front_end.window_samples)
        if (larger.sample_rate, larger.window_samples) != asked:
            raise UsageError(
                f"--larger: {larger.id} takes {larger.window_samples} samples at {larger.sample_rate} Hz, devices "
                f"send {asked[1]} at {asked[0]} Hz; give an encoder for those"
            )
        windows = sample_windows(recordings, *asked, front_end.hop_samples, MAX_WINDOWS, seed)
        return cls(whole(larger.graph), torch.from_numpy(windows), larger.graph, head)

    def aligned(self, embed: Embed) -> AlignedEncoder:
        """The encoder with a map to the embeddings (n, d) that a generation computes from windows (n, samples)."""
        own = in_batches(embed, self.windows)
        judges = torch.arange(len(own)) % _HELD_OUT == _HELD_OUT - 1
        found = _fit(self._embeddings[~judges], own[~judges])
        cosines = functional.cosine_similarity(_mapped(self._embeddings[judges], *found), own[judges])
        return AlignedEncoder(self._embed, *found, float(cosines.median()), self._head)


def whole(graph: EncoderGraph) -> Embed:
    """A function that embeds windows (n, samples) with an uncut encoder, run as a server runs its blocks."""
    served = ServedBlocks(split(graph, [graph.candidates[0], graph.candidates[-1]]))
    return lambda windows: served.complete(0, windows)


def in_batches(embed: Embed, windows: Tensor) -> Tensor:
    """(n, samples) -> (n, d), in batches to limit the memory."""
    return torch.cat([embed(part) for part in torch.split(windows, _BATCH)])


def _fit(given: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), weights (D, d) and bias (d,) of the ridge regression from (n, D) to (n, d)."""
    mean, deviation = given.double().mean(0), given.double().std(0) + 1e-8
    bias = wanted.double().mean(0)
    scaled = (given.double() - mean) / deviation
    weights = ridge(scaled, wanted.double() - bias, PENALTY) / deviation[:, None]
    return mean.float(), weights.float(), bias.float()


def _mapped(embeddings: Tensor, mean: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    return functional.normalize((embeddings - mean) @ weights + bias, dim=1)
