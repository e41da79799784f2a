"""The library call behind `runtime_edge.open`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from runtime_edge import minisign
from runtime_edge.backend import RuntimeOptions
from runtime_edge.bundle import open_bundle
from runtime_edge.errors import UsageError
from runtime_edge.prefix import Prefix
from runtime_edge.variants import choose_variant


class EdgeEncoder:
    """A whole encoder on this machine."""

    def __init__(self, prefix: Prefix) -> None:
        front_end = prefix.bundle.manifest.info.front_end
        self.sample_rate: int = front_end.sample_rate
        self.window_samples: int = front_end.window_samples
        self.hop_samples: int = front_end.hop_samples
        self.embedding_dim: int = prefix.bundle.manifest.info.encoder.embedding_dim
        self._prefix = prefix

    def embed(self, waveform: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Embeddings (windows, d) float32, unit norm, of a mono waveform (samples,) in [-1, 1].

        One window each `hop_samples`; a sound shorter than one window is padded with silence. Raises UsageError.
        """
        try:
            audio = np.nan_to_num(np.asarray(waveform, dtype=np.float32), posinf=1.0, neginf=-1.0)
        except (TypeError, ValueError) as exc:
            raise UsageError(f"waveform: expected numbers ({exc})") from None
        if audio.ndim != 1 or audio.size == 0:
            raise UsageError(f"waveform of shape {audio.shape}; expected (samples,) with at least one sample")
        missing = max(0, self.window_samples - audio.size)
        audio = np.pad(audio, (0, missing))
        starts = range(0, audio.size - self.window_samples + 1, self.hop_samples)
        result = np.empty((len(starts), self.embedding_dim), np.float32)
        for row, start in enumerate(starts):
            result[row] = self._prefix.embed(audio[start : start + self.window_samples])
        return result


def open_encoder(path: str, pub: str | None, variant: str, threads: int) -> EdgeEncoder:
    """See `runtime_edge.open`."""
    trusted = None if pub is None else minisign.read_public_key(Path(pub))
    bundle = open_bundle(Path(path), trusted)
    prefix = Prefix(bundle, choose_variant(bundle.manifest, variant), RuntimeOptions(threads))
    prefix.load_all()
    return EdgeEncoder(prefix)
