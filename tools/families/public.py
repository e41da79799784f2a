"""Public encoder families by name, with random weights: our own small definitions, or models of `transformers`.

Each is a callable without arguments that returns a module (batch, window_samples) -> (batch, d).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from streamsplit_compile.bundle.calibrate import calibration_windows
from streamsplit_compile.encoder.encoders import new_encoder
from tools.families.images import (
    Audio,
    ByolA,
    LogMel,
    Vggish,
    convnext,
    crnn,
    densenet,
    mobile,
    panns,
    resnet_se,
    yamnet,
)
from tools.families.sequences import (
    Conformer,
    Crepe,
    Dac,
    Ecapa,
    Patches,
    Perceiver,
    RawNet3,
    Resemblyzer,
    SincNet,
    m5,
    tcn,
    xvector,
)


class Hugging(Audio):
    """A model of the transformers library: `give` makes its arguments, `take` gets the embedding from its output."""

    def __init__(self, model: nn.Module, give: Callable[[Tensor], Any], take: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.give, self.take = model, give, take

    def forward(self, x: Tensor) -> Tensor:
        """(batch, samples) -> (batch, d)."""
        given = self.give(x)
        return self.take(self.model(**given) if isinstance(given, dict) else self.model(given))


def mean_state(output: Any) -> Tensor:
    """Last hidden states, averaged over time."""
    found: Tensor = output.last_hidden_state.mean(1)
    return found


def speech(name: str, **fields: Any) -> Callable[[], nn.Module]:
    """A speech model of the library that takes samples: `speech("Hubert")`."""
    small = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}
    small |= {"conv_dim": [128] * 7, "num_conv_pos_embeddings": 32, "num_conv_pos_embedding_groups": 4}

    def make() -> nn.Module:
        return Hugging(library(f"{name}Model", f"{name}Config", small | fields), lambda x: x, mean_state)

    return make


def library(model: str, config: str, fields: dict[str, Any]) -> nn.Module:
    """A model of the library with random weights."""
    transformers = importlib.import_module("transformers")
    built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**fields))
    return built


def spectrogram_model(
    model: str,
    config: str,
    fields: dict[str, Any],
    give: Callable[[Tensor], Any],
    take: Callable[[Any], Tensor],
    hop: int = 160,
) -> Callable[[], nn.Module]:
    """A model of the library that takes log-mels, with log-mels computed before it."""

    def make() -> nn.Module:
        mel = LogMel(16000, 400, hop, fields.get("num_mel_bins", 64))
        hugging = Hugging(library(model, config, fields), give, take)
        return Behind(mel, hugging)

    return make


class Behind(Audio):
    """Log-mels, then a model."""

    def __init__(self, mel: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.mel, self.model = mel, model

    def forward(self, x: Tensor) -> Tensor:
        """(batch, samples) -> (batch, d)."""
        found: Tensor = self.model(self.mel(x))
        return found


def registered(name: str) -> Callable[[], nn.Module]:
    """An encoder of this project."""

    def make() -> nn.Module:
        return new_encoder(name)[0]

    return make


def settled(module: Any) -> Any:
    """Give the module's batch norms the statistics of some windows: with initial ones values fade layer by layer."""
    rate, samples = getattr(module, "sample_rate", 16000), getattr(module, "window_samples", 16000)
    windows, _ = calibration_windows(None, rate, samples, samples // 2, 16, seed=1)
    norms = [part for part in module.modules() if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for norm in norms:
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        module(torch.from_numpy(windows))
    for norm in norms:
        norm.eval()
    return module


def same(x: Tensor) -> Tensor:
    """The samples as they are."""
    return x


TINY = {"d_model": 96, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
_VIT = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}
_MOBILE = {"hidden_sizes": [64, 80, 96], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320]}

FAMILIES: dict[str, Callable[[], nn.Module]] = {
    **{name: registered(name) for name in ("ast", "clap", "efficientnet_b0", "mn", "mobilenet_v3_small", "resnet18")},
    "AST base": lambda: Patches(768, 12, mels=128),
    "AST inline": lambda: Patches(192, 12, mels=128),
    "BEATs": lambda: Patches(384, 6, mels=128),
    "BYOL-A": ByolA,
    "CED tiny": lambda: Patches(192, 12, guarded=True),
    "Conformer": Conformer,
    "Conv-TasNet": tcn,
    "ConvNeXt": convnext,
    "CREPE tiny": Crepe,
    "CRNN": crnn,
    "DAC": Dac,
    "data2vec audio": speech("Data2VecAudio"),
    "DenseNet": densenet,
    "DyMN": lambda: mobile(dynamic=True),
    "ECAPA-TDNN": Ecapa,
    "EfficientAT mn": mobile,
    "EnCodec": lambda: Hugging(
        library("EncodecModel", "EncodecConfig", {"sampling_rate": 16000, "num_filters": 16}).encoder,
        lambda x: x.unsqueeze(1),
        lambda y: y.mean(2),
    ),
    "HuBERT": speech("Hubert"),
    "M5": m5,
    "Mamba": spectrogram_model(
        "MambaModel",
        "MambaConfig",
        {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 8},
        lambda x: {"inputs_embeds": x.transpose(1, 2), "use_cache": False},
        mean_state,
        hop=320,  # its scan is unrolled step by step
    ),
    "MobileViT": lambda: Behind(
        LogMel(),
        Hugging(
            library("MobileViTModel", "MobileViTConfig", {**_MOBILE, "num_channels": 1, "image_size": 64}),
            lambda x: x.unsqueeze(1)[..., :96],
            lambda y: y.pooler_output,
        ),
    ),
    "Moonshine": lambda: Hugging(
        library("MoonshineModel", "MoonshineConfig", {"hidden_size": 96, "intermediate_size": 192}).encoder,
        same,
        mean_state,
    ),
    "PANNs Cnn6": lambda: panns((64, 128, 256, 512)),
    "PANNs Cnn14": lambda: panns((64, 128, 256, 512, 1024)),
    "Parakeet": lambda: Behind(
        LogMel(16000, 400, 160, 80),
        Hugging(
            library(
                "ParakeetEncoder",
                "ParakeetEncoderConfig",
                {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192},
            ),
            lambda x: x.transpose(1, 2),
            mean_state,
        ),
    ),
    "Perceiver": Perceiver,
    "RawNet3": RawNet3,
    "Resemblyzer": Resemblyzer,
    "ResNetSE34": resnet_se,
    "SEW": speech("SEW", conv_dim=[64] * 13),
    "SincNet": SincNet,
    "UniSpeech": speech("UniSpeech"),
    "VGGish": Vggish,
    "ViT": spectrogram_model(
        "ViTModel",
        "ViTConfig",
        {**_VIT, "num_channels": 1, "image_size": (64, 96), "patch_size": 16},
        lambda x: x.unsqueeze(1)[..., :96],
        lambda y: y.last_hidden_state.mean(1),
    ),
    "wav2vec2": registered("wav2vec2"),
    "Wav2Vec2-BERT": spectrogram_model(
        "Wav2Vec2BertModel",
        "Wav2Vec2BertConfig",
        {**_VIT, "feature_projection_input_dim": 64},
        lambda x: x.transpose(1, 2),
        mean_state,
    ),
    "Wav2Vec2-Conformer": speech("Wav2Vec2Conformer", position_embeddings_type="relative"),
    "WavLM": speech("WavLM"),
    "Whisper": lambda: Behind(
        LogMel(16000, 400, 160, 80),
        Hugging(
            library("WhisperModel", "WhisperConfig", {**TINY, "max_source_positions": 50}).encoder,
            lambda x: x[..., :100],
            mean_state,
        ),
    ),
    "x-vector": xvector,
    "YAMNet": yamnet,
}
"""The families by name."""
