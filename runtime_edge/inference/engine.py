"""An opened bundle, ready to run windows and make frames. A hot-swap replaces the whole engine between windows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from runtime_edge.audio.wire_streams import AudioStreamEncoder
from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.codec import CutCodec
from runtime_edge.formats.model_id import model_number
from runtime_edge.formats.records.adaptation import Adaptation
from runtime_edge.formats.wire import encode_frame
from runtime_edge.inference.contract import RuntimeOptions
from runtime_edge.inference.cut_assets.loaded import CutAssets
from runtime_edge.inference.prefix import Prefix

Embedding = npt.NDArray[np.float32]
ACTIVATION_ENCODINGS = ("int8", "float16", "float32")


FirstAnswerer = Literal["exit", "device"]
"""The exit at the cut, or the whole encoder on the device."""


class FirstAnswer(msgspec.Struct, frozen=True):
    """The device's own answer for a window, before its frame is written, and how its memory judges that answer."""

    by: FirstAnswerer
    embedding: Embedding
    uncertainty: float
    """In [0, 1]."""
    novelty: float
    """Squared distance to what the memory knows, as a share of that between two windows."""
    ships: bool
    """Whether a frame is worth sending nevertheless."""


Judge = Callable[[Embedding], FirstAnswer]


class PrefixResult(msgspec.Struct, frozen=True):
    """The result of running a window up to a cut."""

    frame: bytes
    """Empty if the first answer shows that the window is not worth sending."""
    encoding: str
    embedding: Embedding | None
    """Present if the whole encoder ran."""
    prefix_ms: float
    encode_ms: float
    first: FirstAnswer | None = None
    """Present if the device answered first."""
    first_ms: float = 0.0


class Engine:
    """Runs prefixes of one bundle and encodes frames; used by one thread at a time."""

    def __init__(
        self,
        bundle: Bundle,
        variant: str,
        encoding: str = "int8",
        options: RuntimeOptions | None = None,
        memory_limit_mb: float | None = None,
        previous: Engine | None = None,
        stream: AudioStreamEncoder | None = None,
        adaptation: Adaptation | None = None,
    ) -> None:
        """Raises BundleError, BackendError, or UsageError for an encoding that the cuts do not have.

        With `previous`, an engine used by the same thread, unchanged blocks are not loaded again. With `stream` the
        waveform is shipped as a stream: only what is new in each window. An `adaptation` must fit the bundle.
        """
        if encoding not in ACTIVATION_ENCODINGS:
            raise UsageError(f"encoding {encoding!r}: expected one of {', '.join(ACTIVATION_ENCODINGS)}")
        self.bundle = bundle
        self.cuts = bundle.manifest.info.cuts
        self.cut_names = [cut.name for cut in self.cuts]
        self.generation = bundle.manifest.info.generation
        self._model = model_number(bundle.manifest) if adaptation is None else adaptation.number
        before = None if previous is None else previous.prefix
        self.prefix: Prefix = Prefix(
            bundle, variant, options, memory_limit_mb, before, native=True, adaptation=adaptation
        )
        # The waveform ships as PCM; the embedding is so small that int8 would save nothing worth its error.
        names = [
            "pcm16",
            *[encoding] * (len(self.cuts) - 2),
            "float32" if encoding == "float32" else "float16",
        ]
        self._assets = CutAssets(self.prefix)
        self._codecs = [CutCodec(cut, name) for cut, name in zip(self.cuts, names, strict=True)]
        self._stream = stream

    def restart_stream(self) -> None:
        """Start a new audio stream with the next window, because the server cannot decode this one any further."""
        if self._stream is not None:
            self._stream.restart()

    @property
    def adaptation(self) -> Adaptation | None:
        """What its normalisation layers give instead of what was compiled."""
        return self.prefix.adaptation

    @property
    def last_cut(self) -> int:
        """Index of the cut after the whole encoder."""
        return self.prefix.last_cut

    def ready(self) -> float:
        """Self-test, which loads every block, bottleneck and exit; returns the largest error. Raises SelfTestError."""
        self._assets.load_all()
        return self._assets.self_test()

    def run(
        self,
        samples: npt.NDArray[np.float32],
        window: int,
        capture_ns: int,
        cut: int,
        uncertainty: float,
        finish: bool,
        width: int = 0,
        answerer: FirstAnswerer | None = None,
        judge: Judge | None = None,
    ) -> PrefixResult:
        """Run one window (samples,) up to `cut` and frame its activation; with `finish` also compute the embedding.

        With a `width`, that many channels of the cut's bottleneck are framed instead. An `answerer` answers first, and
        `judge` turns its embedding into a first answer: the frame then states this window's uncertainty instead of the
        given one, and there is no frame if the window is not worth sending.

        The device cannot continue if the memory limit leaves no room for the blocks after the cut.
        """
        started = time.perf_counter()
        self.prefix.start(samples)
        activation = self.prefix.advance(cut)
        ran = answered = time.perf_counter()
        first = None
        if judge is not None:
            early = self._assets.exit(self.cut_names[cut]).embedding() if answerer == "exit" else self._whole()
            first = judge(early)
            uncertainty, answered = first.uncertainty, time.perf_counter()
            if not first.ships:
                encoding = self._codecs[cut].encoding
                return PrefixResult(b"", encoding, None, (ran - started) * 1e3, 0.0, first, (answered - ran) * 1e3)
        if cut == 0 and self._stream is not None:
            # A frame that is not sent now is spooled and may arrive at any later time.
            encoding, compressed = self._stream.encoding, False
            payload: bytes | memoryview = self._stream.encode(samples, window, alone=finish)
        elif width:
            encoding = "int8"
            payload, compressed = self._assets.bottleneck(self.cut_names[cut]).encode(width)
        else:
            encoding = self._codecs[cut].encoding
            payload, compressed = self._codecs[cut].encode(activation)
        frame = encode_frame(
            window, capture_ns, self.generation, cut, encoding, compressed, uncertainty, payload, self._model, width
        )
        framed = time.perf_counter()
        goes_on = finish and answerer != "device" and self.prefix.fits(self.last_cut)
        embedding = self._whole() if cut == self.last_cut or goes_on else None
        times = (ran - started) * 1e3, (framed - answered) * 1e3
        return PrefixResult(frame, encoding, embedding, *times, first, (answered - ran) * 1e3)

    def _whole(self) -> Embedding:
        """The embedding (d,) of the window that was run, from the remaining blocks."""
        embedding: Embedding = self.prefix.advance(self.last_cut)[0].copy()
        return embedding

    def embed(self, samples: npt.NDArray[np.float32]) -> Embedding | None:
        """Embedding (d,) of one window (samples,); None if the memory limit leaves no room for the whole encoder."""
        return self.prefix.embed(samples) if self.prefix.fits(self.last_cut) else None
