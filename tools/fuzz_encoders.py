"""Parsers of an encoder's files and compiled files, for `tools.fuzz`; they take bytes."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from runtime_edge.errors import FormatError
from tools.fuzz_files import directory, from_file, toys

_CONFIG = "config.json"


def kept_tflite_graph(data: bytes) -> bytes:
    """Parse a converted graph, into which each generation's weights are written."""
    from streamsplit_compile.lowering import tflite_lowering

    if tflite_lowering.needs_conversion(data):
        raise FormatError("there is no room for weights in it")
    return tflite_lowering.write_weights(data, _tiny()[1])


def kept_tflite_graphs() -> list[bytes]:
    """The kept graph of a whole encoder."""
    return [_tiny()[0]]


@functools.cache
def _tiny() -> tuple[bytes, dict[str, np.ndarray[Any, Any]]]:
    """The kept graph of a small encoder, and its weights."""
    from streamsplit_compile.encoder.graph import export_encoder
    from streamsplit_compile.encoder.segment import extract
    from streamsplit_compile.lowering.tflite_lowering import keep_graph

    encoder = export_encoder(toys().Tiny(), toys().Tiny.window_samples)
    first, last = encoder.candidates[0], encoder.candidates[-1]
    tensors = {name: value.detach().numpy() for name, value in encoder.module.state_dict().items()}
    return keep_graph(extract(encoder, first, last), first.shape, tensors.keys()), tensors


def config(data: bytes) -> object:
    """Parse the value of `ssc encoder new --encoder-config`."""
    from streamsplit_compile.cli.compile_commands import parse_config

    return parse_config(data.decode("utf-8", "surrogateescape"))


def configs() -> list[bytes]:
    """Configs for a registered encoder."""
    return [b'{"width": 0.5, "embedding": 64, "names": ["a", "b"], "front": {"mels": 64}}']


def trained(data: bytes) -> object:
    """Parse trained weights as they come with the package."""
    from streamsplit_compile.encoder.published.trained import read_trained

    return from_file(read_trained, "encoder.weights.npz")(data)


@functools.cache
def trained_files() -> list[bytes]:
    """The weights of a layer, and the same compressed."""
    import torch

    from streamsplit_compile.encoder.published.trained import TrainedWeights, packed

    path = directory() / "layer.npz"
    TrainedWeights("tiny", {"width": 2}, "nobody", packed(torch.nn.Linear(3, 2).state_dict())).write(path)
    stored, tighter = path.read_bytes(), io.BytesIO()
    with np.load(io.BytesIO(stored)) as entries:
        np.savez_compressed(tighter, **{name: entries[name] for name in entries.files})
    return [stored, tighter.getvalue()]


def published(data: bytes) -> object:
    """Parse the configuration file beside published weights."""
    from streamsplit_models.library import preprocessor, read_json

    def read(path: Path) -> object:
        (path.parent / "preprocessor_config.json").write_bytes(data)
        return preprocessor(str(path.parent)), read_json(str(path.parent), path.name)

    return from_file(read, f"published/{_CONFIG}")(data)


def published_configs() -> list[bytes]:
    """Configs with fields that are read, and with others."""
    return [json.dumps({"sampling_rate": 16000, "mean": -4.25, "std": 4.5, "architectures": ["AST"]}).encode()]


def tflite_files() -> list[bytes]:
    """A file with one operation on one constant, written by the format's own library."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    code, node, graph, model = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    node.inputs, node.outputs = [0, 1], [2]
    tensors = [schema.TensorT() for _ in range(3)]
    buffers = [schema.BufferT() for _ in range(4)]
    buffers[2].data = np.zeros(12, np.uint8)
    for index, tensor in enumerate(tensors):
        tensor.shape, tensor.buffer, tensor.name = [1, 3], index + 1, str(index)
    graph.tensors, graph.operators, graph.inputs, graph.outputs = tensors, [node], [0], [2]
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], buffers
    builder = flatbuffers.Builder(256)
    builder.Finish(model.Pack(builder), b"TFL3")
    return [bytes(builder.Output())]


def expressions() -> list[bytes]:
    """Size expressions as in archives."""
    return [b"2*s0", b"s0**2 + 1", b"Max(1, s0//2)", b"Mod(Symbol('u0', integer=True), Integer(2))", b"Pow(s0, 3) >= 2"]


def expression(data: bytes) -> None:
    """Parse an archive's size expression."""
    from streamsplit_compile.encoder.archives import check_expression

    check_expression(data.decode("utf-8", "replace"), "expression")
