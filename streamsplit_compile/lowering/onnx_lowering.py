"""Lowers a segment to ONNX in two steps: a kept graph whose parameters are inputs, then a file with the weights.

Because the graph is kept apart from the weights, a recompile is cheap: nothing is traced, exported or simplified
again. The simplifier never sees a weight, so the kept graph cannot depend on one.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxscript.optimizer
import onnxsim
import torch
from onnx import helper
from torch import fx

from runtime_edge.errors import FormatError
from streamsplit_compile.lowering.exportable import exportable
from streamsplit_compile.lowering.onnx_folding import fold, note_norms
from streamsplit_compile.lowering.real_spectra import odd_spectra
from streamsplit_compile.lowering.refusals import refusal, refuse_projected_lstm

Norms = Literal["folded", "kept", "adaptable"]
"""What becomes of normalisation layers after convolutions."""
OPSET = 18
INPUT, OUTPUT = "input", "output"
Array = npt.NDArray[np.generic]


def keep_graph(segment: fx.GraphModule, shape: tuple[int, ...], parameters: Collection[str]) -> bytes:
    """Export a segment for one window; its tensors named in `parameters` become graph inputs under their names.

    `shape` is the activation's, with a batch axis of 1. Other tensors (a front end's fixed matrices) stay in the graph
    as constants. Returns a serialised ONNX model without weights. Raises UsageError naming a node that ONNX cannot
    express.
    """
    refuse_projected_lstm(segment)
    try:
        return _export(segment, shape, parameters)
    except Exception as exc:
        raise refusal("torch.onnx", exc, segment) from exc


def _export(segment: fx.GraphModule, shape: tuple[int, ...], parameters: Collection[str]) -> bytes:
    with _quiet():
        exported = torch.onnx.export(
            exportable(odd_spectra(segment)),
            (torch.zeros(shape),),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    _rename_ends(model)
    _strip_provenance(model)
    _initializers_to_inputs(model, parameters)
    with _quiet():
        model = onnxscript.optimizer.optimize(model)
        model, _ = onnxsim.simplify(model, check_n=0, skip_fuse_bn=True)
    _strip_provenance(model)
    kept = [value for value in model.graph.input if value.name == INPUT or value.name in parameters]
    used = {name for node in model.graph.node for name in node.input}
    del model.graph.input[:]
    model.graph.input.extend(value for value in kept if value.name == INPUT or value.name in used)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def parameter_names(kept_graph: bytes) -> list[str]:
    """Names of the tensors that `write_weights` needs for this kept graph, in graph order. Raises FormatError."""
    return [value.name for value in _decode(kept_graph).graph.input if value.name != INPUT]


def write_weights(
    kept_graph: bytes,
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str],
    norms: Norms = "folded",
) -> bytes:
    """Write tensors into a kept graph and fold exactly: constants, and batch norms into convolutions.

    Norms that are "kept" stay as they are, so that their scales and shifts stay separate tensors; if they are
    "adaptable", the file says which tensors they were folded into.
    Raises KeyError when a tensor is missing, FormatError naming a tensor of another shape or type, or when the kept
    graph is damaged. Returns the deterministic bytes of the ONNX file.
    """
    model = _decode(kept_graph)
    graph = model.graph
    activation = [value for value in graph.input if value.name == INPUT]
    weights = {value.name: _weight(value, tensors) for value in graph.input if value.name != INPUT}
    del graph.input[:]
    graph.input.extend(activation)
    try:
        folded = fold(graph, weights, norms=norms != "kept")
    except Exception as exc:  # whatever onnx's reference evaluator raises for a node that makes no sense
        raise FormatError(f"kept graph: cannot be folded ({type(exc).__name__}); compile it again") from exc
    helper.set_model_props(model, dict(sorted(metadata.items())))
    if norms == "adaptable":
        note_norms(model, folded)
    return bytes(model.SerializeToString(deterministic=True))


def _decode(kept_graph: bytes) -> onnx.ModelProto:
    try:
        return onnx.load_from_string(kept_graph)
    except Exception:  # protobuf's DecodeError, which onnx does not export
        raise FormatError("kept graph: not an ONNX model; compile it again") from None


def _weight(value: onnx.ValueInfoProto, tensors: Mapping[str, Array]) -> Array:
    tensor = np.asarray(tensors[value.name], order="C")
    if np.iscomplexobj(tensor):
        # ONNX stores real and imaginary parts along a last axis.
        tensor = np.stack([tensor.real, tensor.imag], -1)
    wanted = value.type.tensor_type
    dtype, shape = helper.tensor_dtype_to_np_dtype(wanted.elem_type), [size.dim_value for size in wanted.shape.dim]
    if tensor.dtype != dtype or list(tensor.shape) != shape:
        raise FormatError(
            f"tensor {value.name} is {tensor.dtype} {list(tensor.shape)}, the graph needs {dtype} {shape}; "
            "are these weights of this encoder?"
        )
    return tensor


def _rename_ends(model: onnx.ModelProto) -> None:
    """Rename the graph's input to `input` and its output to `output`."""
    graph = model.graph
    (activation,) = [value for value in graph.input if value.name not in {t.name for t in graph.initializer}]
    (result,) = graph.output
    renames = {activation.name: INPUT, result.name: OUTPUT}
    activation.name, result.name = INPUT, OUTPUT
    for node in graph.node:
        node.input[:] = [renames.get(name, name) for name in node.input]
        node.output[:] = [renames.get(name, name) for name in node.output]


def _initializers_to_inputs(model: onnx.ModelProto, names: Collection[str]) -> None:
    graph = model.graph
    lifted = [tensor for tensor in graph.initializer if tensor.name in names]
    rest = [tensor for tensor in graph.initializer if tensor.name not in names]
    already = {value.name for value in graph.input}
    del graph.initializer[:]
    graph.initializer.extend(rest)
    graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in lifted
        if tensor.name not in already
    )


def _strip_provenance(model: onnx.ModelProto) -> None:
    """Drop stack traces, source paths and versions, so that the same input gives the same bytes anywhere."""
    model.producer_name, model.producer_version, model.doc_string, model.domain = "streamsplit", "", "", ""
    model.graph.name = "block"
    model.graph.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        value.doc_string = ""
        del value.metadata_props[:]
    del model.graph.value_info[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters: their progress and their warnings are not for the compiler's user."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
