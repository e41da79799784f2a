"""Converts EfficientAT's MobileNetV3 checkpoints to the encoder `mn`, and the classifier to a head if labels are given.

A classifier is a hidden layer and a linear one. A head is linear and takes vectors of length 1, so the hidden layer
becomes the end of the encoder, which brings vectors to length 1 without losing their original length
(`streamsplit_models.mn.Lift`), and the linear layer becomes the head. Its scores are then those of the checkpoint.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime_edge.base.files import read_text
from runtime_edge.errors import FormatError
from runtime_edge.formats.records.head import Head
from streamsplit_compile.encoder.encoders import new_encoder, read_state, save_checkpoint

_LAST = "features.16.0.weight"
_CHANNELS = 960
_HIDDEN, _OUTPUT = "classifier.2", "classifier.5"
_MAX_LABELS_BYTES = 1 << 20
_THRESHOLD = 0.5
_MAX_DIGITS = 6
_SPARE = 1.125
"""Factor above the longest hidden vector of synthetic sounds: no vector of ESC-10's 3,600 windows is longer."""


def import_efficientat(
    path: Path, out: Path, config: dict[str, Any], labels: Path | None = None
) -> tuple[dict[str, Any], Head | None]:
    """Read a MobileNetV3 checkpoint of EfficientAT (`mn*_as_*.pt`) and write it as encoder `mn`; returns its config.

    The width follows from the file; `config` may add arguments of the encoder's factory, for example
    {"window_seconds": 5}. With `labels`, a CSV with the columns `index` and `display_name` such as AudioSet's
    class_labels_indices.csv, the classifier is also returned, as a head for the labels named there. Raises FormatError.
    """
    state = read_state(path)
    last = state.get(_LAST)
    if last is None:
        raise FormatError(f"{path}: no {_LAST!r}; not a MobileNetV3 checkpoint of EfficientAT")
    full = {"width_mult": round(last.shape[0] / _CHANNELS, 3), **config}
    names: dict[int, str] = {}
    if labels is not None:
        for name in (f"{layer}.{part}" for layer in (_HIDDEN, _OUTPUT) for part in ("weight", "bias")):
            if name not in state:
                raise FormatError(f"{path}: no {name!r}; its classifier is none of EfficientAT's; leave out --labels")
        names = read_labels(labels, len(state[f"{_OUTPUT}.bias"]))
        full = {**full, "hidden": len(state[f"{_HIDDEN}.bias"])}
    module, full = _built(path, full, state)
    if names:
        module, full = _built(path, {**full, "reach": round(_SPARE * module.longest_hidden(), 2)}, state)
    head = None
    if names:  # checked by reading it as a device will, before anything is written
        head = Head.from_json(_head(state, names, full["reach"]).to_json(), str(labels))
    save_checkpoint("mn", full, module, out)
    return full, head


def _built(path: Path, config: dict[str, Any], state: Mapping[str, torch.Tensor]) -> tuple[Any, dict[str, Any]]:
    module, full = new_encoder("mn", config)
    try:
        module.load_state_dict(state)
    except RuntimeError as exc:
        reason = " ".join(str(exc).split())[:200]
        raise FormatError(f"{path}: does not fit mn of width {config['width_mult']}: {reason}") from None
    return module, full


def _head(state: Mapping[str, torch.Tensor], names: Mapping[int, str], reach: float) -> Head:
    rows = torch.tensor(list(names))
    weights = state[f"{_OUTPUT}.weight"][rows].numpy() * np.float32(reach)
    lifted = np.concatenate([weights, np.zeros((len(names), 1), np.float32)], axis=1)
    return Head(
        encoder="mn",
        embedding_dim=lifted.shape[1],
        generations=(1, 1),
        labels=tuple(names.values()),
        scores_by="sigmoid",
        thresholds=(_THRESHOLD,) * len(names),
        validation=None,
        created_by="ssc encoder import efficientat",
        model=None,
        temperature=1.0,
        bias=state[f"{_OUTPUT}.bias"][rows].numpy().astype("<f4").tobytes(),
        weights=lifted.astype("<f4").tobytes(),
    )


def read_labels(path: Path, count: int) -> dict[int, str]:
    """Names by the index of a classifier's `count` outputs, in the file's order. Raises FormatError naming the line."""
    rows = csv.DictReader(io.StringIO(read_text(path, _MAX_LABELS_BYTES)))
    try:
        return _names(path, rows, count)
    except csv.Error as exc:
        raise FormatError(f"{path}: line {rows.line_num}: {exc}") from None


def _names(path: Path, rows: csv.DictReader[str], count: int) -> dict[int, str]:
    missing = {"index", "display_name"} - set(rows.fieldnames or ())
    if missing:
        raise FormatError(f"{path}: no column {sorted(missing)[0]}; give AudioSet's class_labels_indices.csv")
    names: dict[int, str] = {}
    for row in rows:
        where, text, name = f"{path}: line {rows.line_num}", row["index"] or "", (row["display_name"] or "").strip()
        if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and int(text) < count):
            raise FormatError(f"{where}: index {text[:40]!r}: the classifier has outputs 0 to {count - 1}")
        if int(text) in names or name in names.values():
            raise FormatError(f"{where}: {text}, {name[:60]!r}: an index or a name appears twice")
        if not name:
            raise FormatError(f"{where}: display_name is empty")
        names[int(text)] = name
    if not names:
        raise FormatError(f"{path}: names no label")
    return names
