"""A checkpoint laid out as LAION-CLAP's authors publish it becomes the encoder `clap`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from runtime_edge.errors import FormatError
from streamsplit_compile.encoder.encoders import load_encoder, new_encoder
from streamsplit_compile.encoder.published.clap import import_clap

pytest.importorskip("transformers")
pytestmark = pytest.mark.integration

SIZES = {
    "patch_embeds_hidden_size": 16,
    "depths": [1, 2],
    "num_attention_heads": [2, 4],
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "projection_dim": 24,
    "spec_size": 256,
}
LAYOUT = {
    r"audio_model\.audio_encoder": "audio_branch",
    r"batch_norm": "bn0",
    r"layernorm_before": "norm1",
    r"layernorm_after": "norm2",
    r"attention\.output\.dense": "attn.proj",
    r"attention\.self": "attn",
    r"intermediate\.dense": "mlp.fc1",
    r"(?<=\d)\.output\.dense": ".mlp.fc2",
    r"projection\.linear1": "projection.0",
    r"projection\.linear2": "projection.2",
}
"""The library's names and the authors'."""


def published(seed: int) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A model of the library with random weights, and the same weights as the authors' training program keeps them."""
    encoder, _ = new_encoder("clap", {**SIZES, "seed": seed})
    state = {}
    for name, value in encoder.get_submodule("model").state_dict().items():
        theirs = name
        for pattern, replacement in LAYOUT.items():
            theirs = re.sub(pattern, replacement, theirs)
        state[theirs] = value
    for name in [name for name in state if ".attn.query." in name]:
        parts = [state.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        state[name.replace("query", "qkv")] = torch.cat(parts)
    state["audio_branch.layers.1.blocks.1.attn_mask"] = torch.zeros(64, 64, 64)
    state["audio_branch.spectrogram_extractor.stft.conv_real.weight"] = torch.zeros(513, 1, 1024)
    state["audio_branch.logmel_extractor.melW"] = torch.zeros(513, 64)
    state["audio_branch.tscam_conv.weight"] = torch.zeros(527, 32, 2, 3)
    state["audio_branch.head.weight"] = torch.zeros(527, 527)
    state["text_branch.embeddings.word_embeddings.weight"] = torch.zeros(4, 4)
    state["logit_scale_a"] = torch.zeros(())
    return encoder, {f"module.{name}": value for name, value in state.items()}


def save(state: dict[str, torch.Tensor], path: Path) -> Path:
    torch.save({"epoch": 1, "name": "CLAP", "state_dict": state}, path)
    return path


def test_the_audio_tower_embeds_as_before(tmp_path: Path) -> None:
    encoder, state = published(seed=3)
    config = import_clap(save(state, tmp_path / "laion.pt"), tmp_path / "encoder.pt", {})
    assert config.items() >= SIZES.items()
    assert config["window_size"] == 8
    loaded = load_encoder(tmp_path / "encoder.pt")
    assert not loaded.untrained
    waveform = 0.1 * torch.randn(2, 48_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded.graph.module(waveform), encoder(waveform), atol=1e-5, rtol=0)


def test_other_files_are_refused_and_nothing_written(tmp_path: Path) -> None:
    _, state = published(seed=0)
    fused = {**state, "module.audio_branch.patch_embed.mel_conv2d.weight": torch.zeros(16, 1, 4, 12)}
    torn = {name: value for name, value in state.items() if "layers.1.blocks.1.mlp" not in name}
    for name, content, said in (
        ("fused", fused, "a checkpoint with fusion; convert it"),
        ("torn", torn, "does not fit clap of"),
        ("flat", {name: value for name, value in state.items() if "projection.0" not in name}, "does not fit clap of"),
        ("text", {"module.text_branch.x": torch.zeros(1)}, "not a checkpoint of LAION-CLAP"),
    ):
        with pytest.raises(FormatError, match=said):
            import_clap(save(content, tmp_path / f"{name}.pt"), tmp_path / "encoder.pt", {})
    assert not (tmp_path / "encoder.pt").exists()
