"""The inference runtime for a format; only the one asked for is imported."""

from __future__ import annotations

from runtime_edge.errors import BackendError
from runtime_edge.inference.contract import Backend, RuntimeOptions


def open_backend(format_name: str, options: RuntimeOptions) -> Backend:
    """The runtime for `onnx` or `tflite` blocks. Raises MissingExtra or BackendError."""
    if format_name == "onnx":
        from runtime_edge.inference.onnx_backend import OnnxBackend

        return OnnxBackend(options)
    if format_name == "tflite":
        from runtime_edge.inference.tflite_backend import TfliteBackend

        return TfliteBackend(options)
    raise BackendError(f"block format {format_name!r}: this version runs onnx and tflite")


def providers_here(format_name: str) -> tuple[str, ...]:
    """The execution providers of the installed runtime for a format. Raises MissingExtra."""
    if format_name == "onnx":
        from runtime_edge.inference.onnx_backend import available_providers

        return available_providers()
    return ("cpu", "xnnpack")
