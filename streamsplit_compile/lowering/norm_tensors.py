"""Which tensors of an ONNX file hold its normalisation layers, noted in the file so that devices can adapt them.

See `runtime_edge.formats.graphs.onnx_norms` for how a device changes them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import onnx
from onnx import numpy_helper

from runtime_edge.formats.graphs.onnx_norms import METADATA, NormTensors, norms_of, write_norms
from streamsplit_compile.lowering.onnx_folding import FoldedNorm

_NORMS = {"BatchNormalization", "LayerNormalization"}
_SCALE, _SHIFT = ".weight", ".bias"


def note_norms(model: onnx.ModelProto, folded: Iterable[FoldedNorm]) -> None:
    """Note the layers of a float32 file: those that were folded into convolutions, and those that stand in it."""
    constants = {tensor.name for tensor in model.graph.initializer}
    scaled: defaultdict[str, list[str]] = defaultdict(list)
    shifted: defaultdict[str, list[str]] = defaultdict(list)
    for norm in folded:
        scaled[norm.scale] += [norm.weight, norm.bias]
        shifted[norm.scale].append(norm.bias)
    for node in model.graph.node:
        if node.op_type in _NORMS and len(node.input) > 2 and constants.issuperset(node.input[1:3]):
            scale, shift = node.input[1:3]
            if shift not in shifted[scale]:
                scaled[scale] += [scale, shift]
                shifted[scale].append(shift)
    _write(
        model,
        [
            NormTensors(layer=scale.removesuffix(_SCALE), scaled=tuple(names), shifted=tuple(shifted[scale]))
            for scale, names in scaled.items()
            if scale.endswith(_SCALE)
        ],
    )


def follow_norms(model: onnx.ModelProto, before: bytes) -> None:
    """Note the layers of a file that was made from a float32 file, whose tensors may have become float16 or int8."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    steps = {node.input[0]: node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    found = []
    for norm in norms_of(before, "the float32 file").values():
        scaled: list[str] = []
        shifted: list[str] = []
        moved: list[tuple[str, str]] = []
        for name in norm.scaled:
            now = next(each for each in (name, f"{name}.fp16", f"{name}_quantized") if each in constants)
            scaled.append(steps.get(now, now))
            if name in norm.shifted:
                if now in steps:
                    moved.append((now, steps[now]))
                else:
                    shifted.append(now)
        found.append(NormTensors(layer=norm.layer, scaled=tuple(scaled), shifted=tuple(shifted), steps=tuple(moved)))
        for name in (*scaled, *(name for name, _ in moved)):
            constants[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constants[name]), name))
    _write(model, found)


def _write(model: onnx.ModelProto, norms: Sequence[NormTensors]) -> None:
    """Into the file's metadata; nothing if there are none."""
    if not norms:
        return
    entries = {entry.key: entry.value for entry in model.metadata_props} | {METADATA: write_norms(tuple(norms))}
    onnx.helper.set_model_props(model, dict(sorted(entries.items())))
