"""From a frame's payload to the activation at its cut, for one bundle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from runtime_edge.errors import BundleError, FrameError
from runtime_edge.formats.codec import CutCodec
from runtime_edge.formats.manifest import Cut
from runtime_edge.formats.wire import WIRE_ENCODINGS, FrameHeader


class FrameCodecs:
    """The codecs of a bundle's cuts, each made when the first frame needs it. Used by several threads."""

    def __init__(self, cuts: Sequence[Cut]) -> None:
        self._cuts = cuts
        self._codecs: dict[tuple[int, str], CutCodec] = {}

    def decode(self, header: FrameHeader, payload: bytes) -> npt.NDArray[np.float32]:
        """The activation (rows, ...) of a frame. Raises FrameError."""
        if header.width:
            raise FrameError(f"frame of window {header.window}: width {header.width}, this bundle has no bottlenecks")
        if header.cut >= len(self._cuts):
            raise FrameError(f"frame of window {header.window}: cut {header.cut}, this bundle has {len(self._cuts)}")
        key = header.cut, WIRE_ENCODINGS[header.encoding]
        if key not in self._codecs:
            try:
                self._codecs[key] = CutCodec(self._cuts[header.cut], key[1])
            except BundleError as exc:
                raise FrameError(f"frame of window {header.window}: {exc}") from None
        return self._codecs[key].decode(payload, header.compressed)
