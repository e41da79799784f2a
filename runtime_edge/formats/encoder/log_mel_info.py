"""How an encoder's log-mel image is made: the parameters from which a device computes it with its own FFT."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from msgspec import Meta

from runtime_edge.formats.strict import Strict

MAX_MATRIX_VALUES = 1 << 22
"""Largest mel filter bank, bands times bins, that a device computes and holds because a manifest asks for it."""

HALF_TAPS = 32
"""When the rate is raised: input samples on each side that interpolation uses for a value between two samples."""

Span = tuple[int, int]
Size = Annotated[int, Meta(ge=1, le=1 << 14)]
Real = Annotated[float, Meta(ge=-1e6, le=1e6)]


class LogMelInfo(Strict, frozen=True, kw_only=True):
    """Description of the first block: from the window to its log-mel image (1, 1, n_mels, frames).

    Fields and their defaults are those of an encoder's front end (docs/method.md, section 1).
    """

    upsample: Annotated[int, Meta(ge=1, le=16)] = 1
    """Factor by which the rate is raised first; lengths and frequencies below are in terms of the raised rate."""
    n_fft: Size
    win_length: Size
    hop_length: Size
    n_mels: Annotated[int, Meta(ge=1, le=1024)]
    f_min: Annotated[float, Meta(ge=0, le=1e7)]
    f_max: Annotated[float, Meta(gt=0, le=1e7)]
    power: Annotated[float, Meta(ge=1, le=2)] = 2.0
    """Exponent of the magnitude: 1 or 2."""
    log: Literal["floor", "offset"] = "floor"
    """`floor`: ln(max(x, eps)); `offset`: ln(x + eps)."""
    eps: Annotated[float, Meta(gt=0, le=1)]
    center: bool = False
    """Whether frame t is centred on sample t * hop_length, with reflections at the ends."""
    mel_scale: Literal["htk", "slaney", "kaldi"] = "slaney"
    mel_norm: Literal["none", "slaney"] = "none"
    window: Literal["periodic", "symmetric"] = "periodic"
    """Which Hann window."""
    preemphasis: Annotated[float, Meta(ge=-1, le=1)] = 0.0
    """c in y[t] = x[t] - c x[t-1]."""
    preemphasis_on: Literal["waveform", "frame"] = "waveform"
    remove_dc: bool = False
    """Whether each frame's mean is subtracted first."""
    scale: Real = 1.0
    """Multiplies the logarithm."""
    offset: Real = 0.0
    """Added after `scale`."""

    def __post_init__(self) -> None:
        """Refuse inconsistent values. msgspec prefixes the error with the field's name."""
        if self.n_fft % 2 or not 2 <= self.win_length <= self.n_fft:
            raise ValueError("n_fft must be even, and win_length from 2 to n_fft")
        if self.power not in (1, 2):
            raise ValueError("power must be 1 or 2")
        if self.f_min >= self.f_max:
            raise ValueError("f_min must be below f_max")
        if self.n_mels * (self.n_fft // 2 + 1) > MAX_MATRIX_VALUES:
            raise ValueError(f"n_mels times the bins of n_fft must be at most {MAX_MATRIX_VALUES}")
        if self.mel_scale == "kaldi" and self.mel_norm != "none":
            raise ValueError("mel_norm must be none with the kaldi scale")

    @property
    def emphasised(self) -> int:
        """Samples that pre-emphasis of the waveform removes at its beginning."""
        return int(self.preemphasis != 0 and self.preemphasis_on == "waveform")

    @property
    def left(self) -> int:
        """Samples that are reflected before the first one."""
        return self.n_fft // 2 - (self.n_fft - self.win_length) // 2 if self.center else 0

    @property
    def right(self) -> int:
        """Samples that are reflected after the last one."""
        return self.win_length - self.left if self.center else 0

    def frames(self, window_samples: int) -> int:
        """Frames of a window; 0 or less if it is too short for one, or too short for the reflections."""
        samples = window_samples * self.upsample - self.emphasised
        if samples <= max(self.left, self.right):
            return 0
        return 1 + math.floor((samples + self.left + self.right - self.win_length) / self.hop_length)

    def kept_frames(self, window_samples: int, hop_samples: int) -> tuple[Span, int]:
        """Which frames a window shares with the previous one, and how many frames later these stood there.

        None unless windows are a whole number of frames apart; frames that reach past a window's ends are never shared.
        """
        shift, rest = divmod(hop_samples * self.upsample, self.hop_length)
        if rest or hop_samples >= window_samples:
            return (0, 0), 0
        guard = HALF_TAPS * self.upsample if self.upsample > 1 else 0
        begin = -(-(guard + self.left) // self.hop_length)
        longest = window_samples * self.upsample - guard - self.emphasised + self.left - self.win_length
        end = min(longest // self.hop_length + 1, self.frames(window_samples)) - shift
        return (begin, max(begin, end)), shift

    def check(self, sample_rate: int, window_samples: int, image: tuple[int, ...]) -> None:
        """Raise ValueError unless windows of this rate and length give an image of this shape, batch first."""
        if self.f_max > sample_rate * self.upsample / 2:
            raise ValueError(f"f_max must be at most {sample_rate * self.upsample / 2:g}, half the raised rate")
        made = (1, 1, self.n_mels, self.frames(window_samples))
        if made != image:
            raise ValueError(f"makes an image of {list(made)}, but cuts[1].shape is {list(image)}")
