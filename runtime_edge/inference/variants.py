"""Which of a bundle's compiled files a device runs, and how: from the bundle, the target and what is installed.

variant = choose_variant(manifest, "auto", "rpi4")       # onnx-fp32, or tflite-fp32 if only that can run
options = runtime_options(manifest, "rpi4", threads=None)
"""

from __future__ import annotations

import importlib.util
import os

from runtime_edge.errors import MissingExtra
from runtime_edge.formats.manifest import Manifest
from runtime_edge.inference.contract import RuntimeOptions

AUTO = "auto"
_MODULES = {"onnx": ("onnxruntime",), "tflite": ("ai_edge_litert", "tflite_runtime")}
_EXTRAS = {"onnx": ("onnxruntime", "edge"), "tflite": ("ai-edge-litert", "edge-tflite")}


def choose_variant(manifest: Manifest, wanted: str = AUTO, target: str | None = None) -> str:
    """The variant `wanted`; with `auto` the target's variant if its runtime is installed, or else the next best.

    Next best is the target's precision in another format, then float32. Raises BundleError if the bundle has no
    such variant, MissingExtra if no runtime for any of its variants is installed.
    """
    if wanted != AUTO:
        for block in manifest.info.blocks:
            manifest.variant(block, wanted)
        return wanted
    cost = manifest.info.targets.get(target or "")
    preferred = cost.variant if cost else "onnx-fp32"
    precision = preferred.partition("-")[2]
    formats = _formats(manifest)
    usable = [name for name, format_name in formats.items() if _installed(format_name)]
    if not usable:
        raise MissingExtra(*_EXTRAS[formats.get(preferred) or next(iter(formats.values()))])
    return min(usable, key=lambda name: (name != preferred, not name.endswith(precision), not name.endswith("fp32")))


def variants_here(manifest: Manifest) -> dict[str, bool]:
    """Every variant of a bundle, and whether a runtime for it is installed."""
    return {name: _installed(format_name) for name, format_name in _formats(manifest).items()}


def runtime_options(manifest: Manifest, target: str | None = None, threads: int | None = None) -> RuntimeOptions:
    """How the target's blocks are run; `threads` overrides its number, which is at most that of processors here."""
    cost = manifest.info.targets.get(target or "")
    if cost is None:
        return RuntimeOptions(threads or 1)
    return RuntimeOptions(threads or min(cost.threads, _processors()), cost.providers)


def _formats(manifest: Manifest) -> dict[str, str]:
    """Variants that every block has, sorted, with their formats."""
    first = manifest.components[manifest.info.blocks[0]].variants
    return {name: first[name].executor_info.ssc.format for name in manifest.variants}


def _installed(format_name: str) -> bool:
    return any(importlib.util.find_spec(module) is not None for module in _MODULES[format_name])


def _processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
