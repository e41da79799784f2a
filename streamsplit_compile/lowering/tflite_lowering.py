"""Lowers a segment to TFLite in two steps: a kept graph without weights, then a file with the weights.

    kept = keep_graph(segment, cut.shape, tensors.keys())     # seconds: litert-torch converts
    data = write_weights(kept, tensors)                       # milliseconds: arrays are copied

The converter rearranges weights (transposes, reshapes, shares them). To find out where each weight went, it is run once
on weights in which every element is a different number. `fx_folding` leaves it no arithmetic on weights, so each
converted constant is a strided view of one finished array. Running both then checks that the result computes what the
segment does.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from runtime_edge.base import zstd
from runtime_edge.errors import FormatError
from runtime_edge.formats.strict import decode
from streamsplit_compile.encoder.quiet import quiet
from streamsplit_compile.lowering.exportable import exportable
from streamsplit_compile.lowering.fx_folding import fold
from streamsplit_compile.lowering.real_spectra import real_spectra
from streamsplit_compile.lowering.tflite_convert import INPUT, OUTPUT, convert
from streamsplit_compile.lowering.tflite_file import Interpreter, float_constants
from streamsplit_compile.lowering.weight_program import WeightProgram, separate

__all__ = ["INPUT", "OUTPUT", "keep_graph", "lower", "needs_conversion", "parameter_names", "write_weights"]

Array = npt.NDArray[Any]
MAX_MODEL_BYTES = 2 << 30
"""A flatbuffer's own limit."""

# Element i of all weights is the float32 with the bits _FIRST + i: from 2**40 up, where no network has a constant.
_FIRST = (127 + 40) << 23
_LAST = (127 + 100) << 23
_TOLERANCE = 1e-3


class ConstantPiece(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One constant of the flatbuffer: a strided view of a finished array."""

    position: int
    """Byte offset in the flatbuffer."""
    result: int
    """Index of the weight program's array."""
    first: int
    """Index in the flattened array of the first element."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Strides in elements of the flattened array."""

    def of(self, array: Array) -> Array:
        """The piece, taken from a finished array. Raises ValueError when it would reach outside."""
        flat = np.ascontiguousarray(array).reshape(-1)
        reach = [stride * (size - 1) for stride, size in zip(self.strides, self.shape, strict=True)]
        low = self.first + sum(min(step, 0) for step in reach)
        high = self.first + sum(max(step, 0) for step in reach)
        if low < 0 or high >= flat.size or min(self.shape, default=1) < 1:
            raise ValueError(f"elements {low} to {high} of an array of {flat.size}")
        steps = [stride * flat.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.first :], self.shape, steps, writeable=False)


class KeptTfliteGraph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A converted segment without its weights, and how to write them in."""

    program: WeightProgram
    pieces: list[ConstantPiece]
    model_bytes: int
    model: bytes
    """The flatbuffer with zeros for weights, zstd; empty when weights cannot be written in."""


def keep_graph(segment: fx.GraphModule, shape: tuple[int, ...], parameters: Collection[str]) -> bytes:
    """Convert a segment for one window without its tensors named in `parameters`; deterministic bytes.

    `shape` is the activation's, with a batch axis of 1. If the converter did arithmetic on the weights, new weights
    need a new conversion: `needs_conversion` says so, `lower` does it. Raises MissingExtra, or UsageError when TFLite
    cannot express the segment.
    """
    body, program = separate(fold(real_spectra(exportable(segment))), parameters)
    unwritable = msgspec.msgpack.encode(KeptTfliteGraph(program, [], 0, b""))
    sizes = _number(body, len(program.results))
    if sizes is None:
        return unwritable
    model = bytearray(convert(body, shape))
    pieces = _find_pieces(model, sizes)
    if {piece.result for piece in pieces} != set(range(len(sizes))):
        return unwritable
    for piece in pieces:
        size = 4 * math.prod(piece.shape)
        model[piece.position : piece.position + size] = bytes(size)
    packed = zstd.compress_frame(zstd.ZstdCompressor(level=9), bytes(model))
    kept = msgspec.msgpack.encode(KeptTfliteGraph(program, pieces, len(model), packed))
    return kept if _is_faithful(kept, segment, shape) else unwritable


def needs_conversion(kept_graph: bytes) -> bool:
    """Whether new weights cannot be written into this kept graph but need `lower`. Raises FormatError."""
    return not _decode(kept_graph).model


def parameter_names(kept_graph: bytes) -> list[str]:
    """Names of the tensors that a kept graph needs. Raises FormatError."""
    return [parameter.name for parameter in _decode(kept_graph).program.parameters]


def write_weights(kept_graph: bytes, tensors: Mapping[str, Array]) -> bytes:
    """Write tensors into a kept graph; returns the bytes of the TFLite file.

    Raises KeyError when a tensor is missing, FormatError when it has another shape, the kept graph is damaged or it
    `needs_conversion`.
    """
    kept = _decode(kept_graph)
    if not kept.model:
        raise FormatError("kept graph: weights cannot be written into this block, it must be converted again")
    arrays = kept.program.run(tensors)
    try:
        unpacked = zstd.decompress_frame(zstd.ZstdDecompressor(), kept.model, kept.model_bytes)
        if unpacked is None:
            raise ValueError(f"its model is not of {kept.model_bytes} bytes")
        model = bytearray(unpacked)
        for piece in kept.pieces:
            values = piece.of(arrays[piece.result])
            place = np.frombuffer(model, "<f4", values.size, piece.position).reshape(values.shape)
            np.copyto(place, values, casting="equiv")
    except (zstd.ZstdError, IndexError, ValueError, TypeError) as exc:
        raise FormatError(f"kept graph: weights do not fit it ({exc}); compile it again") from None
    return bytes(model)


def lower(segment: fx.GraphModule, shape: tuple[int, ...], tensors: Mapping[str, Array]) -> bytes:
    """Convert a segment with these tensors instead of its own, for graphs that need a new conversion.

    Raises MissingExtra or UsageError as `keep_graph` does, KeyError when a tensor is missing.
    """
    body, program = separate(fold(real_spectra(exportable(segment))), tensors.keys())
    for index, array in enumerate(program.run(tensors)):
        # A copy: torch.export treats two views of one array as the same tensor.
        body.register_buffer(f"weight_{index}", torch.from_numpy(array.copy()))
    return convert(body, shape)


def _number(body: fx.GraphModule, count: int) -> list[int] | None:
    """Number the elements of all weights; returns the size of each weight, or None if they cannot be numbered."""
    sizes = []
    position = _FIRST
    for index in range(count):
        weight = body.get_buffer(f"weight_{index}")
        sizes.append(weight.numel())
        if weight.dtype != torch.float32 or position + weight.numel() > _LAST:
            return None
        numbers = torch.arange(position, position + weight.numel(), dtype=torch.int32)
        body.register_buffer(f"weight_{index}", numbers.view(torch.float32).reshape(weight.shape))
        position += weight.numel()
    return sizes


def _find_pieces(model: bytearray, sizes: Sequence[int]) -> list[ConstantPiece]:
    """Find the constants that are strided views of one numbered weight in a model converted with such weights."""
    ends = np.cumsum(sizes)
    pieces = {}
    for constant in float_constants(model):
        numbers = constant.values.view(np.int32).astype(np.int64) - _FIRST
        first = int(numbers.flat[0])
        if not len(ends) or not 0 <= first < ends[-1]:
            continue
        result = int(np.searchsorted(ends, first, side="right"))
        begin = int(ends[result]) - sizes[result]
        strides = [
            int(numbers.take(1, axis).flat[0]) - first if size > 1 else 0 for axis, size in enumerate(numbers.shape)
        ]
        expected = np.full(numbers.shape, first)
        for axis, stride in enumerate(strides):
            expected += stride * np.arange(numbers.shape[axis]).reshape([-1, *[1] * (numbers.ndim - axis - 1)])
        if np.array_equal(numbers, expected) and numbers.min() >= begin and numbers.max() < ends[result]:
            shape = tuple(int(size) for size in numbers.shape)
            pieces[constant.position] = ConstantPiece(constant.position, result, first - begin, shape, tuple(strides))
    return [pieces[position] for position in sorted(pieces)]


def _is_faithful(kept: bytes, segment: fx.GraphModule, shape: tuple[int, ...]) -> bool:
    """Whether the kept graph with the segment's weights computes what the segment does.

    The numbers would not show that a converter has added a constant to a weight.
    """
    names = parameter_names(kept)
    model = write_weights(kept, {name: operator.attrgetter(name)(segment).detach().numpy() for name in names})
    # Positive values, for a segment whose input is a power spectrum.
    activation = np.random.default_rng(0).uniform(0.1, 1.0, shape).astype(np.float32)
    with torch.no_grad():
        expected = segment(torch.from_numpy(activation)).numpy()
    with quiet():
        interpreter = Interpreter(model_content=model, num_threads=1)
        interpreter.allocate_tensors()
        found = interpreter.get_signature_runner()(**{INPUT: activation})[OUTPUT]
    return bool(np.linalg.norm(found - expected) <= _TOLERANCE * np.linalg.norm(expected))


def _decode(kept_graph: bytes) -> KeptTfliteGraph:
    fix = "; compile it again"
    kept = decode(kept_graph, KeptTfliteGraph, "kept graph", MAX_MODEL_BYTES, form="MessagePack", fix=fix)
    if not 0 <= kept.model_bytes <= MAX_MODEL_BYTES:
        raise FormatError(f"kept graph: model_bytes is {kept.model_bytes}; compile it again")
    return kept
