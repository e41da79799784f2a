"""The sample for the checks: a small encoder, the bundle compiled from it, and a recording."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch

from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.codec import CutCodec
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.bundle.calibrate import calibration_windows
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder, new_encoder, save_checkpoint

Array = npt.NDArray[np.float32]
TARGET = "rpi4"
_ENCODER, _BLOCKS = "mobilenet_v3_small", "3"
_CALIBRATION_WINDOWS = 4
_FILE_RATE, _FILE_WINDOWS = 44_100, 4


@dataclass(frozen=True)
class Sample:
    """A bundle, the module it came from, and audio for it."""

    encoder: Path
    bundle: Bundle
    module: torch.nn.Module
    pcm: npt.NDArray[np.int16]
    """(samples,) at the encoder's rate, enough for several windows at every cut."""
    recording: Path
    """The beginning of the same audio as a stereo FLAC file at 44.1 kHz."""

    @functools.cached_property
    def prefix(self) -> Prefix:
        """The bundle's ONNX blocks on this machine."""
        return Prefix(self.bundle, "onnx-fp32")

    @property
    def window(self) -> int:
        """Number of samples in a window."""
        return self.bundle.manifest.info.front_end.window_samples

    @property
    def hop(self) -> int:
        """Number of samples between the starts of two windows."""
        return self.bundle.manifest.info.front_end.hop_samples

    @property
    def cuts(self) -> list[str]:
        """Names of the cuts, in order."""
        return [cut.name for cut in self.bundle.manifest.info.cuts]

    def heard(self, index: int) -> Array:
        """Window `index` as a device hears it, (samples,) float32."""
        audio: Array = self.pcm[index * self.hop : index * self.hop + self.window].astype(np.float32)
        audio /= 32768
        return audio

    def whole(self, index: int) -> Array:
        """The whole encoder's embedding of a window in torch, (d,)."""
        with torch.no_grad():
            embedding: Array = self.module(torch.from_numpy(self.heard(index))[None])[0].numpy()
        return embedding

    def through(self, index: int, cut: str, encoding: str) -> Array:
        """The embedding (d,) on this machine of a window whose activation at a cut went through a frame's encoding."""
        position = self.cuts.index(cut)
        codec = CutCodec(self.bundle.manifest.info.cuts[position], encoding)
        self.prefix.start(self.heard(index))
        activation = self.prefix.advance(position)
        payload, compressed = codec.encode(activation)
        activation[...] = codec.decode(bytes(payload), compressed)
        embedding: Array = self.prefix.advance(self.prefix.last_cut)[0].copy()
        return embedding


def make_sample(directory: Path, recordings: Path | None, windows_per_cut: int) -> Sample:
    """Compile the encoder in both formats, in float32 and int8; the audio is from recordings or synthesised."""
    encoder = directory / "encoder.pt"
    module, config = new_encoder(_ENCODER)
    save_checkpoint(_ENCODER, config, module, encoder)
    options = CompileOptions([load_target(TARGET)], cuts=_BLOCKS, calibrate=recordings,
                             calibration_windows=_CALIBRATION_WINDOWS,
                             formats=("onnx", "tflite"), precisions=("fp32", "int8"))  # fmt: skip
    bundle = compile_encoder(load_encoder(encoder), options, directory / "bundle")
    front_end = bundle.manifest.info.front_end
    rate, hop = front_end.sample_rate, front_end.hop_samples
    count = front_end.window_samples // hop + windows_per_cut * len(bundle.manifest.info.cuts)
    audio = np.concatenate(calibration_windows(recordings, rate, hop, hop, count, seed=1)[0])
    recording = directory / "recording.flac"
    length = round((front_end.window_samples + (_FILE_WINDOWS - 1) * hop) / rate * _FILE_RATE)
    soundfile.write(recording, np.stack([audio[:length]] * 2, axis=1), _FILE_RATE)
    return Sample(encoder, bundle, module.eval(), np.round(audio * 32767).astype("<i2"), recording)
