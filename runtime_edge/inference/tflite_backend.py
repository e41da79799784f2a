"""TFLite blocks on ai-edge-litert, or on tflite-runtime if that is installed. The one file that imports them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from runtime_edge.errors import BackendError, MissingExtra
from runtime_edge.formats.encoder.parts import VariantInfo
from runtime_edge.formats.graphs.onnx_norms import Layers
from runtime_edge.formats.graphs.tflite_graph import check_tflite
from runtime_edge.inference.contract import Array, LoadedBlock, RuntimeOptions, check_shape

try:
    import ai_edge_litert as package
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
except ImportError:
    try:
        import tflite_runtime as package
        from tflite_runtime.interpreter import Interpreter, OpResolverType
    except ImportError as exc:
        raise MissingExtra("ai-edge-litert", "edge-tflite") from exc


class TfliteBackend:
    """The TFLite interpreter on the CPU, with XNNPACK unless the options exclude it."""

    name = f"{package.__name__.replace('_', '-')} {getattr(package, '__version__', '')}".rstrip()

    def __init__(self, options: RuntimeOptions) -> None:
        self._threads = options.threads
        plain, default = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, OpResolverType.AUTO
        self._resolver = default if "xnnpack" in options.providers else plain
        self._announced = False

    def load(
        self, data: bytes, info: VariantInfo, source: Array, result: Array, where: str, layers: Layers | None = None
    ) -> LoadedBlock:
        """See `Backend.load`."""
        check_tflite(data, where)
        if layers:
            raise BackendError(f"{where}: the norms of TFLite files cannot be adapted; run an ONNX variant")
        try:
            # XNNPACK announces itself on stderr the first time.
            with contextlib.nullcontext() if self._announced else _stderr_closed():
                interpreter = Interpreter(
                    model_content=data, num_threads=self._threads, experimental_op_resolver_type=self._resolver
                )
                interpreter.allocate_tensors()
            self._announced = True
            (inputs,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()
            (signature,) = interpreter.get_signature_list().values()
        except Exception as exc:
            raise BackendError(f"{where}: {self.name} refuses it ({_first_line(exc)})") from None
        for details, buffer in ((inputs, source), (outputs, result)):
            check_shape(details["shape"].tolist(), buffer.shape, where)
            if details["dtype"] is not np.float32:
                raise BackendError(f"{where}: the block takes or gives {np.dtype(details['dtype'])}, expected float32")
        if signature != {"inputs": [info.input], "outputs": [info.output]}:
            raise BackendError(f"{where}: the block has {signature}, the manifest {info.input} and {info.output}")
        return _TfliteBlock(interpreter, inputs["index"], outputs["index"], (source, result), where)


class _TfliteBlock:
    def __init__(
        self, interpreter: Any, source_index: int, result_index: int, buffers: tuple[Array, Array], where: str
    ) -> None:
        self._interpreter, self._where = interpreter, where
        # Calling these makes a view of the interpreter's memory, which must not be held across `invoke`.
        self._input, self._output = interpreter.tensor(source_index), interpreter.tensor(result_index)
        self._source, self._result = buffers

    def run(self) -> None:
        try:
            np.copyto(self._input(), self._source)
            self._interpreter.invoke()
            np.copyto(self._result, self._output())
        except Exception as exc:
            raise BackendError(f"{self._where}: the block failed ({_first_line(exc)})") from None


@contextlib.contextmanager
def _stderr_closed() -> Iterator[None]:
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().split("\n")[0] or type(exc).__name__)[:300]
