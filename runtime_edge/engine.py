"""One opened bundle, ready to run windows and make frames. A hot-swap replaces the whole engine between windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime_edge.bundle import Bundle
from runtime_edge.codec import CutCodec
from runtime_edge.errors import UsageError
from runtime_edge.prefix import Prefix
from runtime_edge.wire import encode_frame

Embedding = npt.NDArray[np.float32]
ACTIVATION_ENCODINGS = ("int8", "float16", "float32")


@dataclass(frozen=True)
class Step:
    """What running a window up to a cut gave."""

    frame: bytes
    encoding: str
    embedding: Embedding | None
    """When the whole encoder ran."""


class Engine:
    """Runs prefixes of one bundle and encodes frames; used by one thread at a time."""

    def __init__(self, bundle: Bundle, variant: str, encoding: str = "int8", threads: int = 1) -> None:
        """Raises BundleError, BackendError, or UsageError for an encoding the cuts do not have."""
        if encoding not in ACTIVATION_ENCODINGS:
            raise UsageError(f"encoding {encoding!r}: expected one of {', '.join(ACTIVATION_ENCODINGS)}")
        self.bundle = bundle
        self.cuts = bundle.manifest.info.cuts
        self.cut_names = [cut.name for cut in self.cuts]
        self.generation = bundle.manifest.info.generation
        self.prefix = Prefix(bundle, variant, threads)
        # The waveform ships as PCM; the embedding is so small that int8 would save nothing worth its error.
        names = [
            "pcm16",
            *[encoding] * (len(self.cuts) - 2),
            "float32" if encoding == "float32" else "float16",
        ]
        self._codecs = [CutCodec(cut, name) for cut, name in zip(self.cuts, names, strict=True)]

    @property
    def last_cut(self) -> int:
        """The cut behind the whole encoder."""
        return self.prefix.last_cut

    def ready(self) -> float:
        """Load every block and self-test; returns the largest error. Raises SelfTestError."""
        self.prefix.load_all()
        return self.prefix.self_test()

    def run(
        self,
        samples: npt.NDArray[np.float32],
        window: int,
        capture_ns: int,
        cut: int,
        uncertainty: float,
        finish: bool,
    ) -> Step:
        """Run one window (samples,) up to `cut` and frame its activation; with `finish` go on to the embedding."""
        self.prefix.start(samples)
        codec = self._codecs[cut]
        payload, compressed = codec.encode(self.prefix.advance(cut))
        frame = encode_frame(window, capture_ns, self.generation, cut, codec.encoding, compressed, uncertainty, payload)
        whole = finish or cut == self.last_cut
        embedding = self.prefix.advance(self.last_cut)[0].copy() if whole else None
        return Step(frame, codec.encoding, embedding)

    def embed(self, samples: npt.NDArray[np.float32]) -> Embedding:
        """Embedding (d,) of one window (samples,)."""
        return self.prefix.embed(samples)
