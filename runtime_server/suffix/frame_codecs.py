"""Decodes a frame's payload, which may be a bottleneck's latent, into the activation at its cut, for one bundle."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from runtime_edge.errors import BundleError, FrameError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.codec import CutCodec
from runtime_edge.formats.latent_codec import LatentCodec
from runtime_edge.formats.wire import WIRE_ENCODINGS, FrameHeader
from streamsplit_compile.bottleneck.block import Bottleneck, read_bottleneck


class FrameCodecs:
    """The codecs of a bundle's cuts, each created when the first frame needs it. Used by several threads."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self._cuts = bundle, bundle.manifest.info.cuts
        self._codecs: dict[tuple[int, str], CutCodec] = {}
        self._bottlenecks: dict[int, tuple[LatentCodec, Bottleneck]] = {}

    def decode(self, header: FrameHeader, payload: bytes) -> npt.NDArray[np.float32]:
        """The activation (rows, ...) of a frame. Raises FrameError."""
        if header.cut >= len(self._cuts):
            raise FrameError(f"frame of window {header.window}: cut {header.cut}, this bundle has {len(self._cuts)}")
        if header.width:
            return self._decode_latent(header, payload)
        key = header.cut, WIRE_ENCODINGS[header.encoding]
        if key not in self._codecs:
            try:
                self._codecs[key] = CutCodec(self._cuts[header.cut], key[1])
            except BundleError as exc:
                raise FrameError(f"frame of window {header.window}: {exc}") from None
        return self._codecs[key].decode(payload, header.compressed)

    def _decode_latent(self, header: FrameHeader, payload: bytes) -> npt.NDArray[np.float32]:
        where, cut = f"frame of window {header.window}", self._cuts[header.cut]
        info = self._bundle.manifest.bottleneck(cut.name)
        if info is None or header.width > info.shape[1]:
            raise FrameError(f"{where}: width {header.width}, this bundle has no such bottleneck at {cut.name}")
        if WIRE_ENCODINGS[header.encoding] != "int8":
            raise FrameError(f"{where}: a latent in {WIRE_ENCODINGS[header.encoding]}; all are int8")
        if header.cut not in self._bottlenecks:
            block = read_bottleneck(self._bundle.read(info.decoder.file), cut, str(self._bundle.path))
            codec = LatentCodec(self._bundle.read(info.coding.file), info.shape)
            self._bottlenecks[header.cut] = codec, block
        codec, block = self._bottlenecks[header.cut]
        latent = codec.decode(payload, header.compressed, header.width)
        with torch.inference_mode():
            activation: npt.NDArray[np.float32] = block.decode(torch.from_numpy(latent)).numpy()
        return activation
