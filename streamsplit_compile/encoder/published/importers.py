"""Published checkpoints of other projects, turned into ours. The files are the user's to download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime_edge.errors import FormatError
from streamsplit_compile.encoder.encoders import new_encoder, read_state, save_checkpoint
from streamsplit_compile.encoder.published.clap import import_clap

_EFFICIENTAT_LAST = "features.16.0.weight"
_EFFICIENTAT_CHANNELS = 960


def import_efficientat(path: Path, out: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Read a MobileNetV3 checkpoint of EfficientAT (`mn*_as_*.pt`) and write it as encoder `mn`; returns its config.

    The width follows from the file; `config` may add what the encoder's factory takes, for example
    {"window_seconds": 5}. Raises FormatError.
    """
    state = read_state(path)
    last = state.get(_EFFICIENTAT_LAST)
    if last is None:
        raise FormatError(f"{path}: no {_EFFICIENTAT_LAST!r}; not a MobileNetV3 checkpoint of EfficientAT")
    width = round(last.shape[0] / _EFFICIENTAT_CHANNELS, 3)
    module, full = new_encoder("mn", {"width_mult": width, **config})
    try:
        module.load_state_dict(state)
    except RuntimeError as exc:
        raise FormatError(f"{path}: does not fit mn of width {width}: {' '.join(str(exc).split())[:200]}") from None
    save_checkpoint("mn", full, module, out)
    return full


IMPORTERS: dict[str, tuple[str, Callable[[Path, Path, dict[str, Any]], dict[str, Any]]]] = {
    "clap": ("clap", import_clap),
    "efficientat": ("mn", import_efficientat),
}
"""Kinds of checkpoints: the encoder that each becomes, and what reads it."""
