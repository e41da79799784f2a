"""Encoders from the `transformers` library, each with its own front end in the graph.

    encoder = ast(directory="ast-finetuned-audioset")     # or no directory: a small fresh model
    encoder(waveform)                                     # (batch, samples) -> (batch, embedding_dim)

A directory is one that `save_pretrained` wrote or that was downloaded: `config.json`, safetensors weights
and, if present, `preprocessor_config.json`. Nothing is fetched and nothing is unpickled. Without a directory,
the other arguments set fields of the library's configuration class, on top of a small default.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from streamsplit_models.encoder import Encoder, Normalize
from streamsplit_models.extractors import ASTFrames, Standardize, ast_front_end
from streamsplit_models.front_end import PRESETS, FrontEnd, Waveform, samples
from streamsplit_models.initialise import settle_on_synthetic
from streamsplit_models.library import build, preprocessor
from streamsplit_models.log_mel import LogMel

# Small defaults for trying things out; the library's own defaults are the published sizes.
SMALL_AST = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}
SMALL_CLAP = {
    "spec_size": 128,
    "depths": [2, 2],
    "num_attention_heads": [2, 4],
    "num_hidden_layers": 2,
    "patch_embeds_hidden_size": 48,
    "hidden_size": 96,
    "projection_dim": 128,
}
SMALL_WAV2VEC2 = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "conv_dim": [128] * 7,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
}


class ASTEncoder(Encoder):
    """Audio Spectrogram Transformer: the mean of its two class tokens, scaled to unit norm."""

    def __init__(self, model: nn.Module, front_end: FrontEnd) -> None:
        config: Any = model.config
        super().__init__(front_end, config.hidden_size)
        self.log_mel = LogMel(front_end)
        self.frames = ASTFrames(config.max_length, front_end.offset)
        self.model = model
        self.normalize = Normalize()

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, window_samples) float32 -> (batch, embedding_dim) float32 of unit norm."""
        embedding: Tensor = self.normalize(self.model(self.frames(self.log_mel(waveform))).pooler_output)
        return embedding


class RepeatPad(nn.Module):
    """Repeat a window as often as it fits into CLAP's clip, then pad with silence."""

    def __init__(self, window_samples: int, clip_samples: int) -> None:
        super().__init__()
        self.times = clip_samples // window_samples
        self.silence = clip_samples - self.times * window_samples

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, window_samples) -> (batch, clip_samples)."""
        return nn.functional.pad(waveform.repeat(1, self.times), (0, self.silence))


class CLAPEncoder(Encoder):
    """CLAP's audio tower and projection: the vector that is compared with text, scaled to unit norm.

    A `fused` checkpoint merges several crops of a clip longer than its input. A window is never longer, so the
    merging is left out and the result is the same.
    """

    def __init__(self, model: nn.Module, front_end: FrontEnd, clip_samples: int) -> None:
        config: Any = model.config
        super().__init__(front_end, config.projection_dim)
        whole: Any = model
        tower = whole.audio_model.audio_encoder
        tower.enable_fusion = tower.patch_embed.enable_fusion = False
        self.repeat = RepeatPad(front_end.window_samples, clip_samples)
        self.log_mel = LogMel(dataclasses.replace(front_end, window_samples=clip_samples))
        self.model = model
        self.normalize = Normalize()

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, window_samples) float32 -> (batch, embedding_dim) float32 of unit norm."""
        image = self.log_mel(self.repeat(waveform)).transpose(2, 3)
        embedding: Tensor = self.normalize(self.model(image).audio_embeds)
        return embedding


class MeanOverTime(nn.Module):
    """(batch, frames, features) -> (batch, features)."""

    def forward(self, sequence: Tensor) -> Tensor:
        """Average over frames."""
        return sequence.mean(dim=1)


class Wav2Vec2Encoder(Encoder):
    """wav2vec 2.0: the last hidden states, averaged over time and scaled to unit norm."""

    def __init__(self, model: nn.Module, front_end: Waveform, standardize: bool) -> None:
        config: Any = model.config
        adapted = config.output_hidden_size if config.add_adapter else config.hidden_size
        super().__init__(front_end, adapted)
        self.standardize = Standardize() if standardize else nn.Identity()
        self.model = model
        self.pool = MeanOverTime()
        self.normalize = Normalize()

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, window_samples) float32 -> (batch, embedding_dim) float32 of unit norm."""
        hidden = self.model(self.standardize(waveform)).last_hidden_state
        embedding: Tensor = self.normalize(self.pool(hidden))
        return embedding


def ast(
    directory: str | None = None,
    window_seconds: float = 1.0,
    hop_seconds: float = 0.5,
    seed: int = 0,
    **fields: Any,
) -> ASTEncoder:
    """Audio Spectrogram Transformer from `directory`, or untrained, with `fields` of `ASTConfig` over `SMALL_AST`.

    Without a directory the model fits the window's number of frames unless `max_length` says otherwise.
    Raises ImportError without `transformers`, ValueError for settings that cannot work.
    """
    said = preprocessor(directory)
    mean, std = said.get("mean", -4.2677393), said.get("std", 4.5689974)
    if std <= 0:
        raise ValueError(f"{directory}: std is {std}, must be positive")
    config = ast_front_end(
        mean,
        std,
        **_window(said, 16_000, window_seconds, hop_seconds),
        n_mels=said.get("num_mel_bins", fields.get("num_mel_bins", 128)),
    )
    if directory is None:
        fields = {**SMALL_AST, "max_length": config.frames, **fields}
    return ASTEncoder(build("ASTModel", "ASTConfig", directory, fields, seed), config).eval()


def clap(
    directory: str | None = None,
    window_seconds: float = 1.0,
    hop_seconds: float = 0.5,
    seed: int = 0,
    **fields: Any,
) -> CLAPEncoder:
    """CLAP's audio encoder from `directory`, or untrained, with `fields` of `ClapAudioConfig` over `SMALL_CLAP`.

    A window shorter than CLAP's clip is repeated, then padded, as the library does. Raises ImportError without
    `transformers`, ValueError for settings that cannot work.
    """
    said = preprocessor(directory)
    fused = said.get("truncation") == "fusion"
    preset = PRESETS["clap"]
    config = dataclasses.replace(
        preset,
        **_window(said, preset.sample_rate, window_seconds, hop_seconds),
        n_fft=said.get("fft_window_size", preset.n_fft),
        win_length=said.get("fft_window_size", preset.win_length),
        hop_length=said.get("hop_length", preset.hop_length),
        n_mels=said.get("feature_size", fields.get("num_mel_bins", preset.n_mels)),
        f_min=said.get("frequency_min", preset.f_min),
        f_max=said.get("frequency_max", preset.f_max),
        mel_scale="htk" if fused else "slaney",
        mel_norm="none" if fused else "slaney",
    )
    if directory is None:
        fields = {**SMALL_CLAP, **fields}
    model = build("ClapAudioModelWithProjection", "ClapAudioConfig", directory, fields, seed)
    encoder = CLAPEncoder(model, config, _clip_samples(model, config, said)).eval()
    if directory is None:
        settle_on_synthetic(encoder, seed)
    return encoder


def wav2vec2(
    directory: str | None = None,
    window_seconds: float = 1.0,
    hop_seconds: float = 0.5,
    seed: int = 0,
    **fields: Any,
) -> Wav2Vec2Encoder:
    """wav2vec 2.0 from `directory`, or untrained, with `fields` of `Wav2Vec2Config` over `SMALL_WAV2VEC2`.

    Raises ImportError without `transformers`, ValueError for settings that cannot work.
    """
    said = preprocessor(directory)
    config = Waveform(**_window(said, 16_000, window_seconds, hop_seconds))
    if directory is None:
        fields = {**SMALL_WAV2VEC2, **fields}
    model = build("Wav2Vec2Model", "Wav2Vec2Config", directory, fields, seed)
    return Wav2Vec2Encoder(model, config, said.get("do_normalize", True)).eval()


def _window(said: dict[str, Any], default_rate: int, window_seconds: float, hop_seconds: float) -> dict[str, Any]:
    rate = said.get("sampling_rate", default_rate)
    return {
        "sample_rate": rate,
        "window_samples": samples("window_seconds", window_seconds, rate),
        "hop_samples": samples("hop_seconds", hop_seconds, rate),
    }


def _clip_samples(model: Any, config: FrontEnd, said: dict[str, Any]) -> int:
    """Number of samples CLAP expects: whole seconds, and no more frames than its image is wide."""
    width = model.config.spec_size * (model.config.spec_size // model.config.num_mel_bins)
    longest = (width - 1) * config.hop_length // config.sample_rate
    clip = int(said.get("max_length_s", longest)) * config.sample_rate
    if config.window_samples > clip:
        raise ValueError(f"window_seconds: CLAP takes at most {clip / config.sample_rate:g} s with this model")
    return clip
