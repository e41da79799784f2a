"""Converts a checkpoint of the LAION-CLAP authors' code: its audio tower becomes the encoder `clap`.

The authors' Swin transformer and the one in the `transformers` library compute the same but name their tensors
differently; sizes are read off the tensors. The text tower and the classifier are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from runtime_edge.errors import FormatError
from streamsplit_compile.encoder.encoders import new_encoder, read_state, save_checkpoint

_TOWER, _PROJECTION = "audio_branch.", "audio_projection."
_INSIDE = "audio_model.audio_encoder."
_RENAMED = (
    (r"^bn0\.", "batch_norm."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_LEFT_OUT = re.compile(r"(spectrogram_extractor|logmel_extractor|tscam_conv|head)\.|.*\.attn_mask$")
_FUSED = "patch_embed.mel_conv2d.weight"


def import_clap(path: Path, out: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint of LAION-CLAP and write its audio tower as encoder `clap`; returns its config.

    `config` may add what the encoder's factory takes, for example {"window_seconds": 5}. Raises FormatError for another
    network and for a checkpoint that merges several crops (`fusion`).
    """
    state = read_state(path)
    tower = {name.removeprefix(_TOWER): value for name, value in state.items() if name.startswith(_TOWER)}
    if _FUSED in tower:
        raise FormatError(
            f"{path}: a checkpoint with fusion; convert it with transformers and name the directory: "
            """ssc encoder new clap --encoder-config '{"directory": "..."}'"""
        )
    sizes = _sizes(tower, state, path)
    renamed = {_INSIDE + name: value for name, value in _renamed(tower).items()}
    for theirs, ours in (("0.", "linear1."), ("2.", "linear2.")):
        layer = _PROJECTION + theirs
        inside = {name: value for name, value in state.items() if name.startswith(layer)}
        renamed |= {_PROJECTION + ours + name.removeprefix(layer): value for name, value in inside.items()}
    module, full = new_encoder("clap", {**sizes, **config})
    try:
        module.get_submodule("model").load_state_dict(renamed)
    except RuntimeError as exc:
        raise FormatError(f"{path}: does not fit clap of {sizes}: {' '.join(str(exc).split())[:200]}") from None
    save_checkpoint("clap", full, module, out)
    return full


def _sizes(tower: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], path: Path) -> dict[str, Any]:
    """The fields of the library's configuration that follow from the tensors."""
    places = [re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name) for name in tower]
    blocks = {(int(place[1]), int(place[2])) for place in places if place}
    depths = [sum(layer == number for layer, _ in blocks) for number in range(len({layer for layer, _ in blocks}))]
    try:
        tables = [tower[f"layers.{number}.blocks.0.attn.relative_position_bias_table"] for number in range(len(depths))]
        patch = tower["patch_embed.proj.weight"]
        return {
            "num_mel_bins": len(tower["bn0.weight"]),
            "patch_size": patch.shape[-1],
            "patch_embeds_hidden_size": patch.shape[0],
            "depths": depths,
            "num_attention_heads": [table.shape[1] for table in tables],
            "num_hidden_layers": len(depths),
            "window_size": (math.isqrt(tables[0].shape[0]) + 1) // 2,
            "mlp_ratio": tower["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / patch.shape[0],
            "hidden_size": len(tower["norm.weight"]),
            "projection_dim": len(state[f"{_PROJECTION}2.weight"]),
            "spec_size": 256,
        }
    except (KeyError, IndexError) as exc:
        raise FormatError(f"{path}: no {exc}; not a checkpoint of LAION-CLAP with its HTS-AT tower") from None


def _renamed(tower: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tower's tensors under the library's names; the authors' code has query, key and value in one tensor."""
    found = {}
    for name, value in tower.items():
        if _LEFT_OUT.match(name):
            continue
        ours = name
        for pattern, replacement in _RENAMED:
            ours = re.sub(pattern, replacement, ours)
        if ".qkv." in ours:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[ours.replace(".qkv.", f".{part}.")] = rows
        else:
            found[ours] = value
    return found
