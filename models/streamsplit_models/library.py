"""The one place that imports the `transformers` library: build a model from fields or from a directory."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

JSON_LIMIT_BYTES = 1 << 20
PREPROCESSOR_NUMBERS = (
    "sampling_rate",
    "num_mel_bins",
    "mean",
    "std",
    "fft_window_size",
    "hop_length",
    "feature_size",
    "frequency_min",
    "frequency_max",
    "max_length_s",
)


def build(model: str, config: str, directory: str | None, fields: Mapping[str, Any], seed: int) -> nn.Module:
    """A model of `transformers`, in eval mode, from `directory` or freshly seeded from `fields`.

    Only safetensors are read, all weights must be there, and torch's global generator stays as it was. Raises
    ImportError if the library is missing and ValueError, naming the field or file, for what cannot work.
    """
    model_class, config_class = _classes(model, config)
    if directory is None:
        return _fresh(model_class, config_class, fields, seed)
    if fields:
        raise ValueError(f"{', '.join(fields)}: the directory {directory} already says, leave out one of them")
    read_json(directory, "config.json")
    return _saved(model_class, directory)


def read_json(directory: str, name: str) -> dict[str, Any]:
    """Read a small JSON object from a file of `directory`; ValueError naming the file if that fails."""
    path = Path(directory) / name
    try:
        if path.stat().st_size > JSON_LIMIT_BYTES:
            raise ValueError(f"{path}: larger than {JSON_LIMIT_BYTES} bytes")
        data = path.read_bytes()
    except OSError as exc:
        raise ValueError(f"{path}: cannot be read ({exc.strerror})") from exc
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"{path}: is not JSON ({exc})") from exc
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a JSON object")
    return content


def preprocessor(directory: str | None) -> dict[str, Any]:
    """The contents of `preprocessor_config.json`; empty if there is no directory or no such file."""
    name = "preprocessor_config.json"
    if directory is None or not (Path(directory) / name).exists():
        return {}
    said = read_json(directory, name)
    for key in PREPROCESSOR_NUMBERS:
        value = said.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{Path(directory) / name}: {key} is {value!r}, must be a number")
    return said


def _classes(*names: str) -> list[Any]:
    """Classes of the library, which imports their dependencies on first use."""
    disabled = logging.root.manager.disable
    # It also imports a quantisation library that warns about its own kernels and about deprecations in torch.
    logging.disable(logging.WARNING)
    try:
        library = importlib.import_module("transformers")
        return [getattr(library, name) for name in names]
    finally:
        logging.disable(disabled)


def _fresh(model: Any, config: Any, fields: Mapping[str, Any], seed: int) -> nn.Module:
    unknown = sorted(set(fields) - set(config().to_dict()))
    if unknown:
        raise ValueError(f"{config.__name__} has no field {', '.join(unknown)}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            built: nn.Module = model._from_config(config(**fields), attn_implementation="eager")
        except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as exc:
            raise ValueError(f"{config.__name__}: {_one_line(exc)}") from exc
    return built.eval()


def _saved(model: Any, directory: str) -> nn.Module:
    try:
        loaded, report = model.from_pretrained(
            directory,
            local_files_only=True,
            use_safetensors=True,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as exc:
        raise ValueError(f"{directory}: {_one_line(exc)}") from exc
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{directory}: no weights for {missing[0]} and {len(missing) - 1} more")
    saved: nn.Module = loaded
    return saved.eval()


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())
