"""Front ends for encoders that take features: `--front-end PRESET|preprocessor_config.json`.

    option = read_front_end("preprocessor_config.json")    # the settings, as a bundle records them
    front_end = build_front_end(option, (1024, 128))       # for an encoder that takes (batch, 1024, 128)

The file is the one in which `transformers` keeps feature extractors. It is treated as data: its type and keys must be
known, each value within bounds, and nothing that it names is imported or fetched. The modules come from the entry
points of `streamsplit.front_ends`.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from msgspec import Meta

from runtime_edge.base.files import read_bounded
from runtime_edge.errors import UsageError
from runtime_edge.formats import strict
from runtime_edge.formats.encoder.load_options import FrontEndOption
from runtime_edge.formats.encoder.log_mel_info import LogMelInfo
from runtime_edge.formats.strict import Strict
from streamsplit_compile.encoder.prepend import PrependedFrontEnd

ENTRY_POINT_GROUP = "streamsplit.front_ends"
MAX_BYTES = 256 << 10
"""Early Whisper files contain the filter bank, 185 kB of text."""

_Rate = Annotated[int, Meta(ge=1000, le=384_000)]
_Mels = Annotated[int, Meta(ge=1, le=512)]
_Frames = Annotated[int, Meta(ge=1, le=16_384)]
_Seconds = Annotated[int, Meta(ge=1, le=60)]
_Samples = Annotated[int, Meta(ge=16, le=4096)]
_Hertz = Annotated[float, Meta(ge=0, le=192_000)]
_Unused = msgspec.Raw
"""The type of a key that makes no difference to the features of one whole window and is ignored."""


class _Extractor(Strict, frozen=True, kw_only=True, tag_field="feature_extractor_type"):
    """Keys that files of all types have."""

    padding_side: _Unused = _Unused()
    padding_value: _Unused = _Unused()
    processor_class: _Unused = _Unused()
    return_attention_mask: _Unused = _Unused()


class AST(_Extractor, frozen=True, kw_only=True, tag="ASTFeatureExtractor"):
    """Kaldi's filter bank."""

    sampling_rate: Literal[16_000] = 16_000
    num_mel_bins: _Mels | None = None
    max_length: _Frames | None = None
    do_normalize: bool = True
    mean: Annotated[float, Meta(ge=-1000, le=1000)] = -4.2677393
    std: Annotated[float, Meta(ge=0.001, le=1000)] = 4.5689974
    feature_size: _Unused = _Unused()


class CLAP(_Extractor, frozen=True, kw_only=True, tag="ClapFeatureExtractor"):
    """Decibels of a mel spectrogram. A fused model's has four images from random positions and is refused."""

    truncation: Literal["rand_trunc"]
    sampling_rate: _Rate = 48_000
    feature_size: _Mels | None = None
    fft_window_size: _Samples = 1024
    hop_length: _Samples = 480
    frequency_min: _Hertz = 0.0
    frequency_max: _Hertz = 14_000.0
    max_length_s: _Seconds | None = None
    chunk_length_s: _Unused = _Unused()
    n_fft: _Unused = _Unused()
    nb_frequency_bins: _Unused = _Unused()
    nb_max_frames: _Unused = _Unused()
    nb_max_samples: _Unused = _Unused()
    padding: _Unused = _Unused()
    top_db: _Unused = _Unused()


class Whisper(_Extractor, frozen=True, kw_only=True, tag="WhisperFeatureExtractor"):
    """Logarithms of a mel spectrogram, down to 8 decades below a window's loudest value."""

    sampling_rate: Annotated[int, Meta(ge=16_000, le=384_000)] = 16_000
    feature_size: _Mels | None = None
    n_fft: _Samples = 400
    hop_length: _Samples = 160
    chunk_length: _Seconds | None = None
    dither: Annotated[float, Meta(ge=0, le=0)] = 0.0
    mel_filters: _Unused = _Unused()
    n_samples: _Unused = _Unused()
    nb_max_frames: _Unused = _Unused()


class Wav2Vec2(_Extractor, frozen=True, kw_only=True, tag="Wav2Vec2FeatureExtractor"):
    """The samples, normalised to zero mean and unit variance."""

    sampling_rate: _Rate = 16_000
    do_normalize: bool = True
    feature_size: _Unused = _Unused()


PRESETS: dict[str, AST | CLAP | Whisper | Wav2Vec2] = {
    "ast": AST(),
    "clap": CLAP(truncation="rand_trunc", frequency_min=50.0),
    "wav2vec2": Wav2Vec2(),
    "whisper": Whisper(),
}
_NOT_PASSED_ON = ("truncation", "dither")
"""Keys that only one value is admitted for, and that front ends do not take."""


def read_front_end(given: str) -> FrontEndOption:
    """Read what `--front-end` names: a preset, or a file of settings. Raises UsageError or FormatError."""
    if given in PRESETS:
        return FrontEndOption(preset=given)
    path = Path(given)
    if not path.is_file():
        raise UsageError(f"--front-end {given}: no such file, and the presets are {', '.join(PRESETS)}")
    return parse_front_end(read_bounded(path, MAX_BYTES), given)


def parse_front_end(data: bytes, source: str) -> FrontEndOption:
    """Read a `preprocessor_config.json` as its differences from a preset. Raises FormatError."""
    extractor = strict.decode(data, AST | CLAP | Whisper | Wav2Vec2, source, MAX_BYTES)  # type: ignore[arg-type]
    preset = next(name for name, known in PRESETS.items() if type(known) is type(extractor))
    usual = _settings(PRESETS[preset])
    said = {name: value for name, value in _settings(extractor).items() if value != usual[name]}
    return FrontEndOption(preset=preset, settings=said)


def build_front_end(option: FrontEndOption, shape: tuple[int, ...] | None) -> PrependedFrontEnd:
    """Build the front end of an encoder that takes (batch, *shape); `shape` is None if that is not known.

    Raises UsageError for settings that cannot work or do not fit the encoder.
    """
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if option.preset not in points:
        raise UsageError(f"--front-end {option.preset}: not registered; install this version of the package again")
    settings = {**_settings(PRESETS[option.preset]), **option.settings}
    try:
        module = points[option.preset].load()(shape, **settings).eval()
    except ValueError as exc:
        raise UsageError(f"--front-end {option}: {exc}") from None
    window = module.front_end.window_samples
    with torch.inference_mode():
        made = tuple(module(torch.zeros(1, window)).shape[1:])
    return PrependedFrontEnd(module, module.front_end.sample_rate, window, made, module.front_end.to_dict())


def described_log_mel(module: torch.nn.Module, prefix: str = "") -> tuple[str, LogMelInfo] | None:
    """Find the first submodule that describes its log-mel image: `prefix` with the module's name, and the description.

    Such a module has a method `describe` that returns a dict with the fields of `LogMelInfo`. None if no module has
    one, or if the dict does not fit.
    """
    for name, part in module.named_modules():
        describe = getattr(part, "describe", None)
        if not callable(describe):
            continue
        said = describe()
        known = {key: said[key] for key in LogMelInfo.__struct_fields__ if key in said}
        try:
            return f"{prefix}{name}", msgspec.convert(known, LogMelInfo, strict=False)
        except msgspec.ValidationError:
            return None
    return None


def _settings(extractor: AST | CLAP | Whisper | Wav2Vec2) -> dict[str, Any]:
    """The keys that make a difference to the features, with their values."""
    values = {name: getattr(extractor, name) for name in extractor.__struct_fields__ if name not in _NOT_PASSED_ON}
    return {name: value for name, value in values.items() if not isinstance(value, _Unused)}
