"""Converts checkpoints published by other projects into ours. Users download the files themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime_edge.errors import UsageError
from runtime_edge.formats.records.head import Head
from streamsplit_compile.encoder.published.clap import import_clap
from streamsplit_compile.encoder.published.efficientat import import_efficientat

Imported = tuple[dict[str, Any], Head | None]
"""The encoder's config, and the classifier as a head if one was asked for."""


def _clap(path: Path, out: Path, config: dict[str, Any], labels: Path | None) -> Imported:
    if labels is not None:
        raise UsageError(f"--labels {labels}: a CLAP checkpoint has no classifier to name; leave it out")
    return import_clap(path, out, config), None


IMPORTERS: dict[str, tuple[str, Callable[[Path, Path, dict[str, Any], Path | None], Imported]]] = {
    "clap": ("clap", _clap),
    "efficientat": ("mn", import_efficientat),
}
"""Kinds of checkpoints: the encoder that each becomes, and the function that reads it."""
