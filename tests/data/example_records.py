"""Heads, adaptations and sub-models for tests."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from runtime_edge.formats.encoder.parts import Expected
from runtime_edge.formats.manifest import Manifest
from runtime_edge.formats.records.adaptation import Adaptation, AdaptedLayer
from runtime_edge.formats.records.head import Head, Validation
from runtime_edge.formats.records.submodel import CutAsset, Modules, SubModel

MODEL = "sha256:" + "0123456789abcdef" * 4
_MN04 = (
    (8,), (8, 8), (24, 24, 16), *[(32, 32, 16)] * 2, *[(48, 48, 16)] * 2, (96, 96, 32), (80, 80, 32),
    *[(72, 72, 32)] * 2, (192, 192, 48), (272, 272, 48), (272, 272, 64), *[(384, 384, 64)] * 2, (384,),
)  # fmt: skip
MN04_NORMS = [
    (f"features.{place}.block.{number}.1", channels)
    for place, row in enumerate(_MN04)
    for number, channels in enumerate(row)
]
"""Normalisation layers of the encoder `mn` at width 0.4: name and channels."""


def head(encoder: str) -> Head:
    """For an encoder whose embeddings have 6 values."""
    return Head(
        encoder=encoder,
        embedding_dim=6,
        generations=(1, 2),
        model=MODEL,
        temperature=1.5,
        exit_temperatures={"stem": 2.0},
        background="rain",
        min_energy=-4.5,
        labels=("dog", "rain"),
        scores_by="softmax",
        thresholds=(0.5, 0.25),
        validation=Validation(
            split="5 folds by clip", windows=40, groups=10, accuracy=0.875, group_accuracy=0.9, average_precision=0.95
        ),
        created_by="ssc server label",
        bias=np.array([0.5, -0.25], "<f4").tobytes(),
        weights=np.random.default_rng(6).uniform(-1, 1, (2, 6)).astype("<f4").tobytes(),
    )


def adaptation(**changes: Any) -> Adaptation:
    """Of two layers."""
    layers = tuple(
        AdaptedLayer(block=block, name=f"{block}.norm", scale=_float16(1.0, 0.5), shift=_float16(-0.25, 0.125))
        for block in ("stem", "down")
    )
    fields: dict[str, Any] = {
        "encoder": "toy",
        "generation": 3,
        "model": MODEL,
        "created_by": "test",
        "self_tests": {"onnx-fp32": Expected(embedding=np.array([0.6, -0.8], "<f4").tobytes(), tolerance=1e-3)},
        "layers": layers,
    }
    return Adaptation(**fields | changes)


def submodel(manifest: Manifest, name: str = "half", **changes: Any) -> SubModel:
    """Of a bundle with the cut `stem`: half of one layer, without another, and files of every kind at the cut."""
    fields: dict[str, Any] = {
        "name": name,
        "modules": (Modules(layer="stem", groups=4, kept=(0, 2)), Modules(layer="residual", groups=4, kept=())),
        "embeds_like": None,
        "head": MODEL,
        "cut_assets": tuple(map(cut_asset, ("bottleneck", "decoder", "coding", "exit"))),
        "manifest": _with_tables(manifest, name),
    }
    return SubModel(**fields | changes)


def cut_asset(kind: str, **changes: Any) -> CutAsset:
    """An asset at the cut `stem`."""
    coding = kind == "coding"
    fields: dict[str, Any] = {
        "cut": "stem",
        "kind": kind,
        "variant": None if coding else "onnx-fp32",
        "file": f"{MODEL}/{kind}.{'zdict' if coding else 'onnx'}",
        "bytes": 1000,
        "input": None if coding else "x",
        "output": None if coding else "y",
        "widths": () if kind == "exit" else (4, 8),
    }
    return CutAsset(**fields | changes)


def _with_tables(manifest: Manifest, name: str) -> Manifest:
    """The manifest with the tables that a sub-model of this name has."""
    fields = msgspec.to_builtins(manifest)
    for target, cost in fields["additional_metadata"]["ssc"]["targets"].items():
        cost["table"] = f"tables/{name}.{target}.json"
    return msgspec.convert(fields, Manifest)


def _float16(*values: float) -> bytes:
    return np.array(values, "<f2").tobytes()
