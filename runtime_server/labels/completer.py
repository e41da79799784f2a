"""Completes frames of several generations that devices have sent, using the server's bundles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime_edge.errors import FormatError, UsageError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.model_id import model_number
from runtime_edge.formats.wire import NO_MODEL, FrameHeader
from runtime_edge.inference.cut_assets.early_exit import LoadedExit
from runtime_edge.inference.prefix import Prefix
from runtime_server.suffix.frame_codecs import FrameCodecs


@dataclass(frozen=True)
class Completed:
    """The outcome of completing a frame."""

    embedding: npt.NDArray[np.float32]
    """(d,)."""
    generation: int
    """The generation of the embedding."""
    by_exit: dict[str, npt.NDArray[np.float32]]
    """The embeddings that the exits at the frame's cut and after it compute, by their cut; empty for a latent."""


class Completer:
    """Computes embeddings of frames of several generations."""

    def __init__(self, bundles: Mapping[int, Bundle]) -> None:
        self._bundles = bundles
        self._newest = bundles[max(bundles)]
        self.front_end = front_end = self._newest.manifest.info.front_end
        self.window_s = front_end.window_samples / front_end.sample_rate
        self._models: dict[int, int] = {}
        self._prefixes: dict[int, tuple[Prefix, list[LoadedExit]]] = {}
        self._codecs = {number: FrameCodecs(bundle) for number, bundle in bundles.items()}

    def complete(self, header: FrameHeader, payload: bytes) -> Completed | None:
        """The embedding of a frame; None if no bundle here can read it, or if the embedding is not finite.

        Frames behind a cut that an adapted device made are not read: other weights were before it.
        """
        # A waveform means the same to every generation, so any newer one can complete it.
        own = self._newest if header.cut == 0 else self._bundles.get(header.generation)
        if own is None or (header.cut > 0 and not self._compiled(header, own)):
            return None
        try:
            activation = self._codecs[own.manifest.info.generation].decode(header, payload)
        except FormatError:
            return None
        bundle = self._newest if _same_until(own, self._newest, header.cut) else own
        number = bundle.manifest.info.generation
        if number not in self._prefixes:
            prefix = Prefix(bundle, float_variant(bundle))
            self._prefixes[number] = prefix, [LoadedExit(prefix, info) for info in bundle.manifest.info.exits]
        prefix, exits = self._prefixes[number]
        prefix.resume(header.cut, activation)
        by_exit = {}
        # What a bottleneck's decoder restores is not what the device's exit has seen.
        for early in exits if not header.width else ():
            if early.cut >= header.cut:
                prefix.advance(early.cut)
                by_exit[early.info.cut] = early.embedding()
        embedding = prefix.advance(prefix.last_cut)[0].copy()
        return Completed(embedding, number, by_exit) if np.isfinite(embedding).all() else None

    def _compiled(self, header: FrameHeader, bundle: Bundle) -> bool:
        """Whether a frame was made with a bundle's own weights; frames of version 1 do not say, and are trusted."""
        number = bundle.manifest.info.generation
        if number not in self._models:
            self._models[number] = model_number(bundle.manifest)
        return header.model in (NO_MODEL, self._models[number])


def _same_until(own: Bundle, newest: Bundle, cut: int) -> bool:
    """Whether two bundles have the same blocks before a cut, so that the newer one can finish for the older."""
    blocks = [bundle.manifest.info.blocks[:cut] for bundle in (own, newest)]
    files = [
        [bundle.manifest.variant(block, float_variant(bundle)).file for block in names]
        for bundle, names in zip((own, newest), blocks, strict=True)
    ]
    cuts = [bundle.manifest.info.cuts for bundle in (own, newest)]
    return files[0] == files[1] and cut < len(cuts[1]) and cuts[0][cut].shape == cuts[1][cut].shape


def float_variant(bundle: Bundle) -> str:
    """The float32 variant of a bundle. Raises UsageError if it has none."""
    found = bundle.manifest.variants
    for name in ("onnx-fp32", "tflite-fp32"):
        if name in found:
            return name
    raise UsageError(f"{bundle.path}: has no float32 blocks, only {', '.join(found)}")
