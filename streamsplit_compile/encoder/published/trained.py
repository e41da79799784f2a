"""Trained weights of a registered encoder, with the head that was trained beside them.

    trained = find_trained("mobilenet_v3_small", "speech-and-sounds")
    module = trained.build({})

A file (`streamsplit.weights/1`) is a numpy archive that holds only arrays. Files that come with an encoder's package
are in its folder `weights/` as `<encoder>.<name>.npz`; others are given by their path.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from runtime_edge.base.files import read_bounded, write_atomic
from runtime_edge.errors import FormatError, HeadError, UsageError
from runtime_edge.formats.records.head import Head
from runtime_edge.formats.strict import decode
from streamsplit_compile.encoder.encoders import ENTRY_POINT_GROUP, new_encoder

FORMAT = "streamsplit.weights/1"
_ABOUT, _HEAD, _TENSOR = "about", "head", "state."
_MAX_BYTES = 1 << 30
_MAX_ABOUT_BYTES = 1 << 20
_KEPT_WHOLE = 1
"""Tensors of up to this many dimensions stay float32: biases and running statistics, a small part of the file."""


@dataclass(frozen=True)
class TrainedWeights:
    """The result of a training run."""

    encoder: str
    config: dict[str, Any]
    attribution: str
    """The attribution of the training recordings, which must accompany the weights."""
    tensors: dict[str, npt.NDArray[np.floating[Any]]] = field(repr=False)
    """The floating-point part of the module's state_dict; matrices in float16, vectors in float32."""
    head: Head | None = None

    def build(self, config: Mapping[str, Any]) -> tuple[torch.nn.Module, dict[str, Any]]:
        """The encoder with these weights and its whole config; `config` adds to the one it was trained with.

        Raises UsageError when the weights do not fit an encoder of that config.
        """
        module, full = new_encoder(self.encoder, {**self.config, **config})
        state = {name: torch.from_numpy(value.astype(np.float32)) for name, value in self.tensors.items()}
        counts = {name: value for name, value in module.state_dict().items() if not value.is_floating_point()}
        try:
            module.load_state_dict(counts | state)
        except RuntimeError as exc:
            reason = " ".join(str(exc).split())[:300]
            raise UsageError(
                f"{self.encoder}: weights trained with {self.config} do not fit {full}: {reason}"
            ) from None
        return module, full

    def write(self, path: Path) -> None:
        """Write a file; the same weights give the same bytes."""
        about = {
            "format": FORMAT,
            "encoder": self.encoder,
            "config": self.config,
            "attribution": self.attribution,
        }
        entries: dict[str, npt.NDArray[Any]] = {
            _ABOUT: np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
        }
        if self.head is not None:
            entries[_HEAD] = np.frombuffer(self.head.to_json(), np.uint8)
        entries |= {_TENSOR + name: value for name, value in self.tensors.items()}
        buffer = io.BytesIO()
        np.savez(buffer, **entries)  # type: ignore[arg-type]  # numpy has an argument allow_pickle among them
        write_atomic(path, buffer.getvalue())


def packed(state: Mapping[str, torch.Tensor]) -> dict[str, npt.NDArray[np.floating[Any]]]:
    """A state_dict as `TrainedWeights.tensors` holds it; counters are left out."""
    floats = {name: value.numpy() for name, value in state.items() if value.is_floating_point()}
    return {
        name: np.ascontiguousarray(value, np.float32 if value.ndim <= _KEPT_WHOLE else np.float16)
        for name, value in floats.items()
    }


def trained_names(encoder: str) -> list[str]:
    """Names of the trained weights that come with a registered encoder's package."""
    folder = _folder(encoder)
    found = folder.glob(f"{encoder}.*.npz") if folder.is_dir() else ()
    return sorted(path.stem.removeprefix(f"{encoder}.") for path in found)


def find_trained(encoder: str, weights: str) -> TrainedWeights:
    """Trained weights of a registered encoder by name, or by the path of a file.

    Raises UsageError for what is not there or of another encoder, FormatError for a damaged file.
    """
    names = trained_names(encoder)
    path = _folder(encoder) / f"{encoder}.{weights}.npz" if weights in names else Path(weights)
    if not path.is_file():
        known = f"{encoder} comes with {', '.join(names)}" if names else f"no weights come with {encoder}"
        raise UsageError(f"--weights {weights}: no such file, and {known}")
    trained = read_trained(path)
    if trained.encoder != encoder:
        raise UsageError(f"{path}: weights of {trained.encoder}, not of {encoder}")
    return trained


def read_trained(path: Path) -> TrainedWeights:
    """Read a file of trained weights. Raises FormatError naming the field."""
    data = io.BytesIO(read_bounded(path, _MAX_BYTES, FormatError))
    try:
        with zipfile.ZipFile(data) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _MAX_BYTES:
            raise ValueError(f"{size} bytes")
        with np.load(data, allow_pickle=False) as stored:
            entries = {name: np.asarray(stored[name]) for name in stored.files}
    except Exception as exc:  # a damaged file fails in as many ways as there are fields in it
        raise FormatError(f"{path}: not a file of trained weights ({type(exc).__name__})") from None
    about = _about(entries.get(_ABOUT), path)
    try:
        head = Head.from_json(entries[_HEAD].tobytes(), f"{path}: head") if _HEAD in entries else None
    except HeadError as exc:
        raise FormatError(str(exc)) from None
    tensors = {name.removeprefix(_TENSOR): value for name, value in entries.items() if name.startswith(_TENSOR)}
    for name, value in tensors.items():
        if value.dtype not in (np.float16, np.float32) or not np.isfinite(value).all():
            raise FormatError(f"{path}: {name}: must be finite float16 or float32")
    return TrainedWeights(about["encoder"], about["config"], about["attribution"], tensors, head)


def _about(entry: npt.NDArray[Any] | None, path: Path) -> dict[str, Any]:
    try:
        about = decode(b"" if entry is None else entry.tobytes(), dict[str, Any], _ABOUT, _MAX_ABOUT_BYTES)
    except FormatError:
        about = {}
    if about.get("format") != FORMAT:
        raise FormatError(f"{path}: field {_ABOUT!r} does not say {FORMAT!r}")
    for name, kind in (("encoder", str), ("config", dict), ("attribution", str)):
        if not isinstance(about.get(name), kind):
            raise FormatError(f"{path}: field {name!r} is missing or not a {kind.__name__}")
    return about


def _folder(encoder: str) -> Path:
    """The folder for an encoder's weights in its package, which need not exist. Raises UsageError."""
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if encoder not in points:
        raise UsageError(f"unknown encoder {encoder!r}; registered: {', '.join(sorted(points))}")
    return Path(str(files(points[encoder].module.partition(".")[0]))) / "weights"
