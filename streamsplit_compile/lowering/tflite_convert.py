"""Converts a torch module to TFLite bytes. The only file that imports litert-torch."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import fx

from runtime_edge.errors import MissingExtra
from streamsplit_compile.encoder.quiet import quiet
from streamsplit_compile.lowering.refusals import refusal

INPUT, OUTPUT = "input", "output"


def convert(body: fx.GraphModule, shape: tuple[int, ...]) -> bytes:
    """The TFLite flatbuffer of a module for one float32 activation of `shape` (batch axis 1).

    Its signature has one input `input` and one output `output` in the module's own layout; the same module gives
    the same bytes. Raises MissingExtra, or UsageError when TFLite cannot express the module.
    """
    with quiet():
        library = _library()
        try:
            model = library.convert(_signature(body), sample_kwargs={INPUT: torch.zeros(shape)})
            return bytes(model.model_content())
        except Exception as exc:
            raise refusal("litert-torch", exc, body) from None


def _signature(body: fx.GraphModule) -> fx.GraphModule:
    """A copy with the signature's names for input and output, whose nodes keep only the module they came from."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in body.graph.nodes:
        if node.op == "output":
            graph.output({OUTPUT: copies[node.args[0]]})
            continue
        copies[node] = (
            graph.placeholder(INPUT) if node.op == "placeholder" else graph.node_copy(node, copies.__getitem__)
        )
        copies[node].meta = {"nn_module_stack": {"block": ("", _module(node))}}
        if "val" in node.meta:
            copies[node].meta["val"] = node.meta["val"]
    return fx.GraphModule(body, graph).eval()


def _module(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0].split("@")[0] if stack else "block"


def _library() -> Any:
    # The library reads both variables when it is first imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    try:
        import litert_torch
    except ImportError as exc:
        raise MissingExtra("litert-torch", "compile-tflite") from exc
    return litert_torch
