"""The parameters of a front end: sizes, scales and presets (docs/method.md, section 1).

config = resolve_front_end("paper")      # or a mapping of fields over a preset
LogMel(config)                           # the module (streamsplit_models.log_mel)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# Largest value of each whole-number field: a configuration may come from a file, so sizes are bounded.
_WHOLE = {
    "sample_rate": 384_000,
    "window_samples": 2**23,
    "hop_samples": 2**23,
    "n_fft": 2**14,
    "win_length": 2**14,
    "hop_length": 2**14,
    "n_mels": 1024,
    "upsample": 16,
}
_REAL = ("f_min", "f_max", "power", "eps", "preemphasis", "scale", "offset")
_CHOICES = {
    "log": ("floor", "offset"),
    "mel_scale": ("htk", "slaney", "kaldi"),
    "mel_norm": ("none", "slaney"),
    "window": ("periodic", "symmetric"),
    "preemphasis_on": ("waveform", "frame"),
    "center": (False, True),
    "remove_dc": (False, True),
}


def _require(held: bool, name: str, value: object, wanted: str) -> None:
    if not held:
        raise ValueError(f"front end: {name} is {value!r}, must be {wanted}")


def _require_whole(config: object, *names: str) -> None:
    for name in names:
        value, limit = getattr(config, name), _WHOLE[name]
        held = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= limit
        _require(held, name, value, f"a whole number from 1 to {limit}")


@dataclass(frozen=True)
class FrontEnd:
    """The settings of a log-mel front end; every field is plain data, so it travels as JSON.

    The defaults are those of docs/method.md, section 1. Raises ValueError, naming the field, for impossible values.
    """

    sample_rate: int = 16_000
    """Hz of the waveform, mono float32 in [-1, 1]."""
    window_samples: int = 16_000
    """Samples of one analysis window, the encoder's input."""
    hop_samples: int = 8_000
    """Samples between the starts of two analysis windows of a stream."""
    upsample: int = 1
    """Factor by which the rate is raised first; every field below is in terms of the raised rate."""
    n_fft: int = 512
    """Length of the DFT; frames shorter than this are zero-padded."""
    win_length: int = 400
    """Samples of one frame."""
    hop_length: int = 160
    """Samples between the starts of two frames."""
    n_mels: int = 128
    """Bands of the mel filter bank."""
    f_min: float = 80.0
    """Hz, lower edge of the first band."""
    f_max: float = 8_000.0
    """Hz, upper edge of the last band; at most half the (raised) rate."""
    power: float = 2.0
    """1.0 for the magnitude spectrum, 2.0 for the power spectrum."""
    log: Literal["floor", "offset"] = "floor"
    """`floor`: ln(max(x, eps)); `offset`: ln(x + eps)."""
    eps: float = 1e-6
    """The smallest value (`floor`) or the added value (`offset`) under the logarithm."""
    center: bool = False
    """Pad by reflection so that frame t is centred on sample t * hop_length, as torch.stft and librosa do."""
    # Slaney's scale is linear below 1 kHz; 128 HTK bands over 257 bins would leave bands without any bin.
    mel_scale: Literal["htk", "slaney", "kaldi"] = "slaney"
    """`htk`, `slaney`: triangles straight in Hz (librosa, torchaudio); `kaldi`: the HTK scale, triangles
    straight in mel (Kaldi, TensorFlow)."""
    mel_norm: Literal["none", "slaney"] = "none"
    """`slaney`: each triangle has unit area in Hz; `none`: unit height."""
    window: Literal["periodic", "symmetric"] = "periodic"
    """Which Hann window."""
    preemphasis: float = 0.0
    """c in y[t] = x[t] - c x[t-1]; 0 for none."""
    preemphasis_on: Literal["waveform", "frame"] = "waveform"
    """`waveform`: before framing, leaving one sample fewer; `frame`: inside each frame (Kaldi)."""
    remove_dc: bool = False
    """Subtract each frame's mean before anything else is done to it (Kaldi)."""
    scale: float = 1.0
    """Multiplies the logarithm."""
    offset: float = 0.0
    """Added after `scale`."""

    def __post_init__(self) -> None:
        """Refuse a configuration that cannot work."""
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            held = value in allowed and isinstance(value, type(allowed[0]))
            _require(held, name, value, f"one of {', '.join(map(str, allowed))}")
        _require_whole(self, *_WHOLE)
        for name in _REAL:
            value = getattr(self, name)
            held = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            _require(held, name, value, "a finite number")
        _require(self.n_fft % 2 == 0, "n_fft", self.n_fft, "even")
        longest = min(self.n_fft, self.signal_samples)
        _require(2 <= self.win_length <= longest, "win_length", self.win_length, f"from 2 to {longest}")
        _require(0 <= self.f_min < self.f_max, "f_min", self.f_min, f"from 0 to below f_max = {self.f_max}")
        nyquist = self.sample_rate * self.upsample / 2
        _require(self.f_max <= nyquist, "f_max", self.f_max, f"at most {nyquist}")
        _require(self.power in (1, 2), "power", self.power, "1.0 or 2.0")
        _require(self.eps > 0, "eps", self.eps, "positive")
        area_in_hertz = self.mel_norm == "none" or self.mel_scale != "kaldi"
        _require(area_in_hertz, "mel_norm", self.mel_norm, "none with the kaldi scale")

    @property
    def signal_samples(self) -> int:
        """Samples that are framed: after pre-emphasis of the waveform, one fewer than the raised window."""
        return self.window_samples * self.upsample - int(self.preemphasis != 0 and self.preemphasis_on == "waveform")

    @property
    def frames(self) -> int:
        """Frames of one analysis window: the width of the image."""
        return 1 + (self.signal_samples - (0 if self.center else self.win_length)) // self.hop_length

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of every field; `FrontEnd.from_dict(f.to_dict()) == f`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> FrontEnd:
        """Build from fields over a base: the preset named by the field `preset`, or `paper` without one.

        Raises ValueError naming an unknown preset or field, or a value that cannot work.
        """
        given = dict(fields)
        base = resolve_front_end(given.pop("preset", "paper"))
        unknown = sorted(set(given) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"front end: unknown field {', '.join(unknown)}")
        return dataclasses.replace(base, **given)


@dataclass(frozen=True)
class Waveform:
    """The front end of an encoder that takes the samples unchanged."""

    sample_rate: int = 16_000
    """Hz of the waveform, mono float32 in [-1, 1]."""
    window_samples: int = 16_000
    """Samples of one analysis window, the encoder's input."""
    hop_samples: int = 8_000
    """Samples between the starts of two analysis windows of a stream."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        _require_whole(self, "sample_rate", "window_samples", "hop_samples")

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of every field."""
        return dataclasses.asdict(self)


_DECIBEL = 10 / math.log(10)

PRESETS: dict[str, FrontEnd] = {
    "paper": FrontEnd(),
    # COLA also scales a whole clip to unit L2 norm before this; here that is left to the source.
    "cola": FrontEnd(
        n_fft=1024, n_mels=64, f_min=60.0, f_max=7_800.0, power=1.0, eps=1e-5, mel_scale="kaldi"
    ),
    # YAMNet's patch of 0.96 s is 96 frames, which need 15 ms more than 0.96 s of samples.
    "yamnet": FrontEnd(
        window_samples=15_600, hop_samples=7_680, n_mels=64, f_min=125.0, f_max=7_500.0, power=1.0,
        log="offset", eps=1e-3, mel_scale="kaldi",
    ),
    "panns": FrontEnd(
        sample_rate=32_000, window_samples=32_000, hop_samples=16_000, n_fft=1024, win_length=1024,
        hop_length=320, n_mels=64, f_min=50.0, f_max=14_000.0, eps=1e-10, center=True, mel_norm="slaney",
        scale=_DECIBEL,
    ),
    "clap": FrontEnd(
        sample_rate=48_000, window_samples=48_000, hop_samples=24_000, n_fft=1024, win_length=1024,
        hop_length=480, n_mels=64, f_min=50.0, f_max=14_000.0, eps=1e-10, center=True, mel_norm="slaney",
        scale=_DECIBEL,
    ),
    "efficientat": FrontEnd(
        sample_rate=32_000, window_samples=32_000, hop_samples=16_000, n_fft=1024, win_length=800,
        hop_length=320, f_min=0.0, f_max=15_000.0, log="offset", eps=1e-5, center=True, mel_scale="kaldi",
        window="symmetric", preemphasis=0.97, scale=1 / 5, offset=4.5 / 5,
    ),
    # Kaldi's filter bank features, standardised by AST's AudioSet mean and twice its deviation.
    "ast": FrontEnd(
        f_min=20.0, eps=2.0**-23, mel_scale="kaldi", window="symmetric", preemphasis=0.97,
        preemphasis_on="frame", remove_dc=True, scale=0.5 / 4.5689974, offset=0.5 * 4.2677393 / 4.5689974,
    ),
    # Common logarithms; Whisper's clamp relative to a window's loudest value is not included.
    "whisper": FrontEnd(
        window_samples=480_000, hop_samples=240_000, n_fft=400, n_mels=80, f_min=0.0, eps=1e-10, center=True,
        mel_norm="slaney", scale=1 / math.log(10),
    ),
}  # fmt: skip


def resolve_front_end(spec: str | Mapping[str, Any] | FrontEnd) -> FrontEnd:
    """Resolve a preset's name, a mapping of fields (see `FrontEnd.from_dict`) or a FrontEnd.

    Raises ValueError for an unknown preset and for whatever `FrontEnd.from_dict` refuses.
    """
    if isinstance(spec, FrontEnd):
        return spec
    if isinstance(spec, Mapping):
        return FrontEnd.from_dict(spec)
    if spec not in PRESETS:
        raise ValueError(f"front end: no preset {spec!r}, choose from {', '.join(PRESETS)}")
    return PRESETS[spec]


def samples(name: str, seconds: float, sample_rate: int) -> int:
    """Whole samples in `seconds`; ValueError naming the argument `name` unless above 0 and at most 60 s."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 < seconds <= 60:
        raise ValueError(f"{name} is {seconds!r}, must be a number of seconds above 0 and at most 60")
    return max(1, round(seconds * sample_rate))
