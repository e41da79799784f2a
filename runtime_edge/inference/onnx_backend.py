"""ONNX blocks on onnxruntime, inputs and outputs bound to fixed buffers. The one file that imports onnxruntime."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from runtime_edge.errors import BackendError, MissingExtra
from runtime_edge.formats.encoder.parts import VariantInfo
from runtime_edge.formats.graphs.onnx_graph import check_onnx
from runtime_edge.formats.graphs.onnx_norms import Layers, adapted
from runtime_edge.inference.contract import Array, LoadedBlock, RuntimeOptions, check_shape

try:
    import onnxruntime
except ImportError as exc:
    raise MissingExtra("onnxruntime", "edge") from exc

_ERRORS_ONLY = 3
_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
_LOG = logging.getLogger(__name__)


class OnnxBackend:
    """onnxruntime without spinning threads. Its arena stays on: MobileNetV3-Small held 80 MB with it and without it."""

    name = f"onnxruntime {onnxruntime.__version__}"

    def __init__(self, options: RuntimeOptions) -> None:
        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = options.threads
        session.inter_op_num_threads = 1
        session.log_severity_level = _ERRORS_ONLY
        # Spinning threads waste a small device's battery and the time of its other processes.
        session.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Without this, int8 sums saturate on x86 processors that lack VNNI, and a block gives a different result there.
        session.add_session_config_entry("session.x64quantprecision", "1")
        # Read what was checked: otherwise the bytes decide between ONNX and the runtime's own format.
        session.add_session_config_entry("session.load_model_format", "ONNX")
        self._options = session
        self._providers = choose_providers(options, onnxruntime.get_available_providers())

    def load(
        self, data: bytes, info: VariantInfo, source: Array, result: Array, where: str, layers: Layers | None = None
    ) -> LoadedBlock:
        """See `Backend.load`."""
        file = check_onnx(data, where)
        if layers:
            data = adapted(data, file, layers, where)
        try:
            session = onnxruntime.InferenceSession(data, self._options, providers=self._providers)
            # It keeps the file for falling back to other providers: as much memory again as the weights.
            session._model_bytes = None
            (inputs,), (outputs,) = session.get_inputs(), session.get_outputs()
        except Exception as exc:
            raise BackendError(f"{where}: onnxruntime refuses it ({_first_line(exc)})") from None
        check_shape(inputs.shape, source.shape, where)
        check_shape(outputs.shape, result.shape, where)
        if (inputs.name, outputs.name) != (info.input, info.output):
            raise BackendError(
                f"{where}: the block has {inputs.name} and {outputs.name}, the manifest {info.input} and {info.output}"
            )
        binding = session.io_binding()
        binding.bind_input(info.input, "cpu", 0, np.float32, source.shape, source.ctypes.data)
        binding.bind_output(info.output, "cpu", 0, np.float32, result.shape, result.ctypes.data)
        return _OnnxBlock(session, binding, (source, result), where)


def available_providers() -> tuple[str, ...]:
    """The known execution providers that this onnxruntime has."""
    found = onnxruntime.get_available_providers()
    return tuple(name for name, provider in _PROVIDERS.items() if provider in found)


def choose_providers(options: RuntimeOptions, available: list[str]) -> list[Any]:
    """Arguments of onnxruntime for the first wanted provider that is available, and the CPU for the rest."""
    wanted = [name for name in options.providers if _PROVIDERS.get(name) in available]
    first = wanted[0] if wanted else "cpu"
    if first != options.providers[0]:
        _LOG.info("onnxruntime here has no %s: running on %s", options.providers[0], first)
    if first == "cpu":
        return [_PROVIDERS["cpu"]]
    # XNNPACK has threads of its own.
    settings = {"intra_op_num_threads": str(options.threads)} if first == "xnnpack" else {}
    return [(_PROVIDERS[first], settings), _PROVIDERS["cpu"]]


class _OnnxBlock:
    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        binding: onnxruntime.IOBinding,
        buffers: tuple[Array, Array],
        where: str,
    ) -> None:
        self._session, self._binding, self._where = session, binding, where
        # The binding holds raw addresses: the buffers must live as long as it does.
        self._buffers = buffers

    def run(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as exc:
            raise BackendError(f"{self._where}: onnxruntime failed ({_first_line(exc)})") from None


def _first_line(exc: Exception) -> str:
    return str(exc).strip().split("\n")[0][:300]
