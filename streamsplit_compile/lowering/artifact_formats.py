"""One interface to lower a block in any format, for `ssc compile --formats --precision`.

    lowered = lower("tflite", segment, cut.shape, tensors)             # kept graph and float32 file
    data = reweight("tflite", lowered.kept, new_tensors)               # a file with new weights
    small = to_precision("tflite", data, "int8", activations)

A format's libraries are imported when it is first asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import fx

from runtime_edge.errors import UsageError
from streamsplit_compile.lowering import onnx_lowering
from streamsplit_compile.lowering.onnx_lowering import Norms

Format = Literal["onnx", "tflite"]
Precision = Literal["fp32", "fp16", "int8", "auto"]
"""`auto` is int8, except for blocks in float32 that would lose too much in int8."""
Tensors = Mapping[str, npt.NDArray[Any]]

FORMATS: tuple[Format, ...] = ("onnx", "tflite")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "auto")
_CONVERTING = threading.Lock()
"""Blocks are reweighted in parallel, but a converter is not safe to run in parallel."""
INPUT, OUTPUT = onnx_lowering.INPUT, onnx_lowering.OUTPUT
"""Names of a block's input and output, in every format."""


@dataclass(frozen=True)
class Lowered:
    """A lowered block in float32."""

    kept: bytes
    """The graph without weights."""
    model: bytes
    """The file that a device runs."""


def variant_name(format_name: Format, precision: Precision) -> str:
    """Name of a variant, for example `tflite-int8`."""
    return f"{format_name}-{precision}"


def lower(
    format_name: Format,
    segment: fx.GraphModule,
    shape: tuple[int, ...],
    tensors: Tensors,
    metadata: Mapping[str, str] | None = None,
    norms: Norms = "folded",
) -> Lowered:
    """Lower a segment for one activation of `shape` (batch axis 1).

    Only ONNX uses `metadata` and `norms`: the TFLite converter always folds norms. Raises MissingExtra, or
    UsageError when the format cannot express the segment.
    """
    kept = _lowering(format_name).keep_graph(segment, shape, tensors.keys())
    return Lowered(kept, reweight(format_name, kept, tensors, metadata, norms, (segment, shape)))


def parameter_names(format_name: Format, kept: bytes) -> list[str]:
    """Names of the tensors that a kept graph needs. Raises FormatError."""
    names: list[str] = _lowering(format_name).parameter_names(kept)
    return names


def reweight(
    format_name: Format,
    kept: bytes,
    tensors: Tensors,
    metadata: Mapping[str, str] | None = None,
    norms: Norms = "folded",
    source: tuple[fx.GraphModule, tuple[int, ...]] | None = None,
) -> bytes:
    """The float32 file of a kept graph with new weights.

    `source` is the segment and its shape, for the few TFLite graphs that must be converted again. Raises KeyError
    when a tensor is missing, UsageError when the source is needed but not given, FormatError when tensors have
    another shape.
    """
    if format_name == "onnx":
        return onnx_lowering.write_weights(kept, tensors, metadata or {}, norms)
    lowering = _lowering(format_name)
    if not lowering.needs_conversion(kept):
        return bytes(lowering.write_weights(kept, tensors))
    if source is None:
        raise UsageError("this TFLite block must be converted again for new weights, which needs the encoder")
    segment, shape = source
    with _CONVERTING:
        needed = {name: tensors[name] for name in lowering.parameter_names(kept)}
        return bytes(lowering.lower(segment, shape, needed))


def to_precision(
    format_name: Format, model: bytes, precision: Precision, activations: npt.NDArray[np.float32] | None = None
) -> bytes:
    """A float32 file in another precision; the same bytes if there is nothing to gain.

    `activations` (windows, *shape) are the block's input on calibration audio; int8 needs them, and so does `auto`,
    which starts from int8. Raises UsageError.
    """
    if precision == "fp32":
        return model
    module = _precision(format_name)
    if precision == "fp16":
        return bytes(module.to_fp16_weights(model))
    return bytes(module.to_int8(model, np.empty(0, np.float32) if activations is None else activations))


def _lowering(format_name: Format) -> ModuleType:
    if format_name == "onnx":
        return onnx_lowering
    from streamsplit_compile.lowering import tflite_lowering

    return tflite_lowering


def _precision(format_name: Format) -> ModuleType:
    if format_name == "onnx":
        from streamsplit_compile.lowering import onnx_precision

        return onnx_precision
    from streamsplit_compile.lowering import tflite_precision

    return tflite_precision
