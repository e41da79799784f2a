"""Front ends equal to the feature extractors of the `transformers` library, for encoders that take features.

    features = clap((1, 1001, 64), sampling_rate=48_000, ...)    # an encoder's input, without the batch axis
    features(waveform)                                           # (batch, samples) -> (batch, 1, 1001, 64) float32

The first argument is the shape of the encoder's input, None if it is unknown. Settings have the names used in
`preprocessor_config.json`; a size of None means the encoder's, or else the library's default. The window is the clip
that fills the input; `front_end` describes it. All raise ValueError, naming the setting, for values that cannot work
or do not fit the shape. Nothing is trained and nothing is in a state_dict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamsplit_models.front_end import PRESETS, FrontEnd, Waveform
from streamsplit_models.log_mel import LogMel

_WHISPER_DECADES = 8.0
"""How far Whisper's log-mel may lie below the loudest value of a window."""


class ASTFrames(nn.Module):
    """Crop or pad a log-mel image to AST's number of frames, time first; padding is a log-mel of zero."""

    def __init__(self, frames: int, padding: float) -> None:
        super().__init__()
        self.frames = frames
        self.padding = padding

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 1, mels, frames) -> (batch, max_length, mels)."""
        image = image.squeeze(1)[:, :, : self.frames]
        missing = self.frames - image.shape[2]
        return nn.functional.pad(image, (0, missing), value=self.padding).transpose(1, 2)


class Standardize(nn.Module):
    """Zero mean and unit variance over each window, with wav2vec 2.0's 1e-7 under the root."""

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, samples) -> (batch, samples)."""
        centred = waveform - waveform.mean(dim=1, keepdim=True)
        return centred / (centred.square().mean(dim=1, keepdim=True) + 1e-7).sqrt()


class LogMelFeatures(nn.Module):
    """Base of the features that start from a front end's log-mel image."""

    def __init__(self, front_end: FrontEnd) -> None:
        super().__init__()
        self.front_end = front_end
        self.log_mel = LogMel(front_end)


class ASTFeatures(LogMelFeatures):
    """The features that `ASTFeatureExtractor` computes."""

    def __init__(self, front_end: FrontEnd, frames: int) -> None:
        super().__init__(front_end)
        self.frames = ASTFrames(frames, front_end.offset)

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, window_samples) -> (batch, frames, mels)."""
        features: Tensor = self.frames(self.log_mel(waveform))
        return features


class CLAPFeatures(LogMelFeatures):
    """The features that `ClapFeatureExtractor` computes from a full-length clip for a model without fusion."""

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, window_samples) -> (batch, 1, frames, mels)."""
        image: Tensor = self.log_mel(waveform)
        return image.transpose(2, 3)


class WhisperFeatures(LogMelFeatures):
    """The features that `WhisperFeatureExtractor` computes."""

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, window_samples) -> (batch, mels, frames), without the frame centred on the window's end."""
        image = self.log_mel(waveform).squeeze(1)[:, :, :-1]
        lowest = image.amax(dim=(1, 2), keepdim=True) - _WHISPER_DECADES
        return (torch.maximum(image, lowest) + 4.0) / 4.0


class WaveformFeatures(nn.Module):
    """The features that `Wav2Vec2FeatureExtractor` computes."""

    def __init__(self, front_end: Waveform, standardize: bool) -> None:
        super().__init__()
        self.front_end = front_end
        self.standardize = Standardize() if standardize else nn.Identity()

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, window_samples) -> (batch, window_samples)."""
        features: Tensor = self.standardize(waveform)
        return features


def ast_front_end(mean: float, std: float, **fields: Any) -> FrontEnd:
    """Kaldi's filter bank, standardised: minus `mean`, divided by twice `std`."""
    return dataclasses.replace(PRESETS["ast"], scale=0.5 / std, offset=-0.5 * mean / std, **fields)


def ast(
    shape: Sequence[int] | None,
    *,
    sampling_rate: int,
    num_mel_bins: int | None,
    max_length: int | None,
    do_normalize: bool,
    mean: float,
    std: float,
) -> ASTFeatures:
    """AST's front end for an encoder of (frames, mels); a window with too few frames is padded."""
    taken_frames, taken_mels = _axes(shape, "frames", "mels")
    frames = _size("max_length", max_length, taken_frames, 1024)
    fields = _window(sampling_rate, frames * PRESETS["ast"].hop_length)
    fields["n_mels"] = _size("num_mel_bins", num_mel_bins, taken_mels, 128)
    return ASTFeatures(ast_front_end(*((mean, std) if do_normalize else (0.0, 0.5)), **fields), frames)


def clap(
    shape: Sequence[int] | None,
    *,
    sampling_rate: int,
    feature_size: int | None,
    fft_window_size: int,
    hop_length: int,
    frequency_min: float,
    frequency_max: float,
    max_length_s: int | None,
) -> CLAPFeatures:
    """CLAP's front end for an encoder of (1, frames, mels)."""
    channels, taken_frames, taken_mels = _axes(shape, "1", "frames", "mels")
    _size("number of mel images", 1, channels, 1)
    samples = _clip("max_length_s", max_length_s, 10, sampling_rate, hop_length, 1, taken_frames)
    front_end = dataclasses.replace(
        PRESETS["clap"],
        n_fft=fft_window_size,
        win_length=fft_window_size,
        hop_length=hop_length,
        n_mels=_size("feature_size", feature_size, taken_mels, 64),
        f_min=frequency_min,
        f_max=frequency_max,
        **_window(sampling_rate, samples),
    )
    return CLAPFeatures(front_end)


def whisper(
    shape: Sequence[int] | None,
    *,
    sampling_rate: int,
    feature_size: int | None,
    n_fft: int,
    hop_length: int,
    chunk_length: int | None,
) -> WhisperFeatures:
    """Whisper's front end for an encoder of (mels, frames)."""
    taken_mels, taken_frames = _axes(shape, "mels", "frames")
    samples = _clip("chunk_length", chunk_length, 30, sampling_rate, hop_length, 0, taken_frames)
    front_end = dataclasses.replace(
        PRESETS["whisper"],
        n_fft=n_fft,
        win_length=n_fft,
        hop_length=hop_length,
        n_mels=_size("feature_size", feature_size, taken_mels, 80),
        **_window(sampling_rate, samples),
    )
    return WhisperFeatures(front_end)


def wav2vec2(shape: Sequence[int] | None, *, sampling_rate: int, do_normalize: bool) -> WaveformFeatures:
    """wav2vec 2.0's front end for an encoder of (samples,); one second if the number of samples is unknown."""
    (samples,) = _axes(shape, "samples")
    return WaveformFeatures(
        Waveform(**_window(sampling_rate, sampling_rate if samples is None else samples)), do_normalize
    )


def _axes(shape: Sequence[int] | None, *names: str) -> Sequence[int | None]:
    """The sizes of the encoder's input, by axis; all None if its shape is unknown."""
    if shape is None:
        return [None] * len(names)
    if len(shape) != len(names):
        made, taken = ", ".join(names), ", ".join(map(str, shape))
        raise ValueError(f"makes (batch, {made}), the encoder takes (batch, {taken})")
    return shape


def _size(name: str, said: int | None, taken: int | None, default: int) -> int:
    """A size from the settings, else from the encoder, else the default."""
    if said is not None and taken is not None and said != taken:
        raise ValueError(f"{name} is {said}, the encoder takes {taken}")
    return next(size for size in (said, taken, default) if size is not None)


def _clip(
    name: str, seconds: int | None, default: int, sample_rate: int, hop: int, further: int, taken: int | None
) -> int:
    """Samples of the clip that fills an encoder's frames; `further` of them are centred beyond its last whole hop."""
    if seconds is None and taken is not None:
        return (taken - further) * hop
    samples = (seconds or default) * sample_rate
    _size(f"{name} is {seconds}: number of frames", samples // hop + further, taken, 0)
    return samples


def _window(sample_rate: int, samples: int) -> dict[str, Any]:
    return {"sample_rate": sample_rate, "window_samples": samples, "hop_samples": max(1, samples // 2)}
