"""Where an ONNX file keeps its normalisation layers, and the file as an adaptation changes it.

A layer may stand in the file itself, or be folded into the convolution before it; in int8 it is part of the
convolution's scales. In each case a factor for each channel and a number added to it are written into the same few
tensors, without moving a byte of the rest. The compiler notes which tensors those are in the file's metadata
(`streamsplit_compile.lowering.onnx_norms`).

    data = adapted(data, check_onnx(data, "block-01"), {"features.0.1": (scale, shift)}, "block-01")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from runtime_edge.errors import BackendError
from runtime_edge.formats.graphs.onnx_graph import OnnxFile, check_onnx
from runtime_edge.formats.strict import Name, Strict, decode

METADATA = "ssc.norms"
_MAX_BYTES = 4 << 20
_TYPES = {1: "<f4", 6: "<i4", 10: "<f2"}
"""numpy's types of ONNX's float, int32 and float16."""
Array = npt.NDArray[np.float32]
Layers = Mapping[str, tuple[Array, Array]]
"""Scale and shift of layers, by name."""
Names = Annotated[tuple[Name, ...], Meta(max_length=4096)]


class NormTensors(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """The tensors of a file that a normalisation layer is written into, each with the layer's channels in front."""

    layer: Name
    """Name of the layer in the encoder."""
    scaled: Names
    """Multiplied by the new factor."""
    shifted: Names = ()
    """Of these, those to which the shift is added."""
    steps: Annotated[dict[Name, Name], Meta(max_length=4096)] = msgspec.field(default_factory=dict)
    """int32 tensors to which the shift is added in steps, each with the tensor in `scaled` that holds the step size."""


class _Noted(Strict, frozen=True, kw_only=True):
    norms: Annotated[tuple[NormTensors, ...], Meta(max_length=4096)]


def write_norms(norms: tuple[NormTensors, ...]) -> str:
    """The text for the file's metadata."""
    return msgspec.json.encode(_Noted(norms=norms)).decode()


def norms_of(data: bytes, where: str) -> dict[str, NormTensors]:
    """The normalisation layers that can be adapted, by name. Raises BackendError."""
    return _norms(check_onnx(data, where), where)


def adapted(data: bytes, file: OnnxFile, layers: Layers, where: str) -> bytes:
    """The checked file in which each layer gives `scale * y + shift`, (channels,) float32 each, instead of `y`.

    Raises BackendError for a layer that the file lacks or that has other channels, or a factor that is not positive.
    """
    norms, changed = _norms(file, where), bytearray(data)
    for name, (scale, shift) in layers.items():
        if name not in norms:
            raise BackendError(f"{where}: has no normalisation layer {name!r}; compile with --adaptable")
        if not (np.isfinite(scale).all() and np.isfinite(shift).all() and (scale > 0).all()):
            raise BackendError(f"{where}: {name}: factors must be positive, and shifts finite")
        _change(changed, file, norms[name], scale.astype(np.float64), shift.astype(np.float64), where)
    return bytes(changed)


def _norms(file: OnnxFile, where: str) -> dict[str, NormTensors]:
    text = file.metadata.get(METADATA)
    if text is None:
        return {}
    noted = decode(text.encode(), _Noted, f"{where}: {METADATA}", _MAX_BYTES, BackendError)
    return {norm.layer: norm for norm in noted.norms}


def _change(
    data: bytearray,
    file: OnnxFile,
    norm: NormTensors,
    scale: npt.NDArray[np.float64],
    shift: npt.NDArray[np.float64],
    where: str,
) -> None:
    for name in norm.scaled:
        values = _values(data, file, name, len(scale), where)
        values[...] = (values * scale[:, None]).astype(values.dtype)
    for name in norm.shifted:
        values = _values(data, file, name, len(scale), where)
        values[...] = (values + shift[:, None]).astype(values.dtype)
    for name, step in norm.steps.items():
        values, steps = (_values(data, file, each, len(scale), where) for each in (name, step))
        moved = values + np.round(shift[:, None] / steps)
        values[...] = np.clip(moved, np.iinfo(np.int32).min, np.iinfo(np.int32).max).astype(values.dtype)


def _values(data: bytearray, file: OnnxFile, name: str, channels: int, where: str) -> npt.NDArray[Any]:
    """A view (channels, values of each) of a tensor in the file."""
    stored = file.tensors.get(name)
    if stored is None or stored.type not in _TYPES:
        raise BackendError(f"{where}: {METADATA}: no tensor {name!r} that can be changed")
    values = np.frombuffer(data, np.uint8)[stored.start : stored.stop]
    if len(values) % (channels * np.dtype(_TYPES[stored.type]).itemsize):
        raise BackendError(f"{where}: {METADATA}: {name!r} does not have {channels} channels")
    return values.view(_TYPES[stored.type]).reshape(channels, -1)
