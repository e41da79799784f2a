"""A small block after a prefix: a bottleneck or an exit, in one file for each format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from runtime_edge.formats.encoder.parts import VariantInfo
from runtime_edge.inference.contract import Array, LoadedBlock
from runtime_edge.inference.prefix import Prefix


def load_behind(
    prefix: Prefix, cut: str, files: Mapping[Literal["onnx", "tflite"], VariantInfo], output: Array, what: str
) -> LoadedBlock:
    """A block bound to the prefix's activation at a cut; each run of it writes to `output`.

    `what` names the block in errors. Raises BundleError or BackendError.
    """
    bundle = prefix.bundle
    file = files["onnx" if prefix.variant.startswith("onnx") else "tflite"]
    source = prefix.buffers[bundle.manifest.cut_named(cut).index]
    return prefix.backend.load(bundle.read(file.file), file, source, output, f"{bundle.path}: {what} at {cut}")
