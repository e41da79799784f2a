"""Decides whether a device may hand a compiled block to its runtime."""

from __future__ import annotations

from typing import Literal

from runtime_edge.formats.graphs.onnx_graph import check_onnx
from runtime_edge.formats.graphs.tflite_graph import check_tflite


def check_block(format_name: Literal["onnx", "tflite"], data: bytes, where: str) -> None:
    """Raise BackendError, naming `where` and the reason, for a block that is not a graph of known operators."""
    {"onnx": check_onnx, "tflite": check_tflite}[format_name](data, where)
