"""Bundles of the shipped encoders as digests, and the tools and processor these digests hold for.

A bundle's bytes depend on its encoder and options, and also on what makes them: torch draws an encoder's first weights,
onnx and TFLite write the files, and processors with other instructions round other last bits. They do not depend on the
number of threads, on the directory, or on how long anything took.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime_edge.formats.bundle import Bundle
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder, new_encoder, save_checkpoint
from streamsplit_compile.lowering.artifact_formats import Format, Precision

_TOOLS = ("torch", "onnx", "onnxruntime", "onnxscript", "onnxsim", "numpy")
_TFLITE_TOOLS = ("litert-torch", "ai-edge-litert", "ai-edge-quantizer")
_INSTRUCTIONS = {"avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8"}


@dataclass(frozen=True)
class Case:
    """An encoder with its default config, compiled with the default options but for formats and precisions."""

    encoder: str
    formats: tuple[Format, ...] = ("onnx",)
    precisions: tuple[Precision, ...] = ("fp32",)
    extra_tools: tuple[str, ...] = ()


CASES = {
    "mobilenet_v3_small": Case("mobilenet_v3_small"),
    "resnet18": Case("resnet18"),
    "mn": Case("mn"),
    "efficientnet_b0": Case("efficientnet_b0"),
    "ast": Case("ast", extra_tools=("transformers",)),
    "clap": Case("clap", extra_tools=("transformers",)),
    "wav2vec2": Case("wav2vec2", extra_tools=("transformers",)),
    "mn-int8": Case("mn", precisions=("fp32", "int8")),
    "mobilenet_v3_small-tflite": Case(
        "mobilenet_v3_small", ("onnx", "tflite"), ("fp32", "int8"), extra_tools=_TFLITE_TOOLS
    ),
}


def compile_case(case: Case, directory: Path) -> Bundle:
    """A fresh encoder and its bundle below `directory`, as `ssc encoder new` and `ssc compile` make them."""
    module, config = new_encoder(case.encoder)
    save_checkpoint(case.encoder, config, module, directory / "encoder.pt")
    options = CompileOptions([load_target("rpi4"), load_target("m2")], formats=case.formats, precisions=case.precisions)
    return compile_encoder(load_encoder(directory / "encoder.pt"), options, directory / "bundle")


def digests(bundle: Bundle) -> dict[str, Any]:
    """Of the manifest, of every asset (checked against its bytes) and of the splitter tables."""
    bundle.verify_assets()
    tables = sorted(cost.table for cost in bundle.manifest.info.targets.values())
    return {
        "manifest": bundle.digest,
        "weights": bundle.manifest.info.encoder.weights,
        "assets": sorted(bundle.manifest.assets()),
        "tables": {path: hashlib.sha256((bundle.path / path).read_bytes()).hexdigest() for path in tables},
    }


def made_with(case: Case) -> dict[str, str]:
    """Versions of the tools, empty where one is not installed, and the processor's kind with its instructions."""
    return {**{tool: _version(tool) for tool in (*_TOOLS, *case.extra_tools)}, "processor": _processor()}


def _version(tool: str) -> str:
    try:
        return importlib.metadata.version(tool)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.exists() else set()
    return " ".join([platform.machine(), *sorted(words & _INSTRUCTIONS)])
