"""Measures the compiler: chained blocks against one session, cold and incremental compiles, patches, the cost model.

    python -m tools.bench_compiler [--quick]

All figures are ratios or medians within one run; absolute times hold for this machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.patch import make_patch
from runtime_edge.inference.prefix import Prefix
from runtime_edge.inference.profile import measure_profile
from streamsplit_compile.bundle.calibrate import calibration_windows
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder, recompile
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder, new_encoder, read_tensors, save_checkpoint
from streamsplit_compile.encoder.published.importers import import_efficientat
from streamsplit_compile.lowering.artifact_formats import Format
from tools.benchmarks import Section, publish

ENCODERS = ("resnet18", "mobilenet_v3_small", "efficientnet_b0")
LOADS = 8
"""How many times the compared sessions are loaded."""
BURST = 5
"""Number of calls that are timed together."""
WEIGHTS = "SSC_TEST_WEIGHTS"
"""Variable that may name a directory with EfficientAT's checkpoint; with it `mn` is measured too."""


def measure(work: Path, quick: bool) -> Section:
    """Run every measurement below `work`; returns the section for docs/benchmarks."""
    rounds = 30 if quick else 200
    encoders = [*ENCODERS, *import_mn(work)]
    onnx = {name: _chain_ratio(work, name, "onnx-fp32", rounds) for name in encoders}
    tflite = {name: _chain_ratio(work, name, "tflite-fp32", rounds) for name in encoders}
    resnet = work / "resnet18"
    section = Section("compiler", "The compiler", "python -m tools.bench_compiler")
    section.add("chain_ratio_onnx", max(onnx.values()), "at most 1.05", "chained blocks / one session, worst encoder")
    section.add("chain_ratio_tflite", max(tflite.values()), "at most 1.1", "the same in TFLite")
    for name in encoders:
        section.detail(f"chained blocks / one session, {name}: ONNX, TFLite", f"{onnx[name]:.3f}, {tflite[name]:.3f}")
    section.add(
        "cold_compile_s", _cold_compile(resnet), "at most 30", "ssc compile resnet18, two targets, ONNX, 2 cores"
    )
    everything, one = _recompiles(resnet, rounds // 10)
    section.add("recompile_all_s", everything, "at most 1.0", "new weights in every block of resnet18")
    section.add("recompile_one_s", one, "at most 0.2", "new weights in one block of resnet18")
    section.add("affine_patch_share", _affine_patch_share(resnet), "at most 0.01", "patches for changed norms / bundle")
    correlation, blocks = _rank_correlation(work, encoders, rounds)
    section.add(
        "profile_rank_correlation", correlation, "at least 0.9", f"predicted and measured time of {blocks} blocks"
    )
    return section


def import_mn(work: Path) -> list[str]:
    """Import the pretrained `mn` if its weights are available."""
    found = sorted(Path(os.environ.get(WEIGHTS, "/nonexistent")).glob("mn*_as_*.pt"))
    if not found:
        print(f"{WEIGHTS} names no EfficientAT checkpoint: mn is left out", file=sys.stderr)
        return []
    (work / "mn").mkdir()
    import_efficientat(found[0], work / "mn" / "encoder.pt", {})
    return ["mn"]


def checkpoint(directory: Path, name: str) -> Path:
    path = directory / "encoder.pt"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        module, config = new_encoder(name)
        save_checkpoint(name, config, module, path)
    return path


def _bundle(
    directory: Path, name: str, cuts: str, keep_norms: bool = False, formats: Sequence[Format] = ("onnx",)
) -> Bundle:
    out = directory / f"bundle-{cuts}-{len(formats)}{'-norms' if keep_norms else ''}"
    if not out.exists():
        options = CompileOptions(
            [load_target("x86-64")], cuts, calibration_windows=4, formats=formats, keep_norms=keep_norms
        )
        compile_encoder(load_encoder(checkpoint(directory, name)), options, out)
    return open_bundle(out)


def _chain_ratio(work: Path, name: str, variant: str, rounds: int) -> float:
    """Processor time of a chain of blocks over that of the same encoder as one session, on one thread.

    The addresses of weights and buffers change either time by a few percent, so both are loaded several times, taking
    turns in going first: the first is 2 % slower, even of two identical ones.
    """
    chain = _bundle(work / name, name, "auto", formats=("onnx", "tflite"))
    whole = _bundle(work / name, name, "1", formats=("onnx", "tflite"))
    window = np.random.default_rng(0).normal(0, 0.1, chain.manifest.info.front_end.window_samples).astype(np.float32)
    ratios = []
    for load in range(LOADS):
        prefixes = [Prefix(bundle, variant) for bundle in (chain, whole)]
        for prefix in prefixes if load % 2 else reversed(prefixes):
            prefix.embed(window)  # loads the blocks
        ratios.append(_interleaved(*(partial(prefix.embed, window) for prefix in prefixes), rounds))
    return statistics.median(ratios)


def _interleaved(first: Callable[[], object], second: Callable[[], object], rounds: int) -> float:
    """Median of the ratios of neighbouring bursts, in alternating order.

    Other programs' time does not count, nor does the first call of a burst: it finds the other session's weights in the
    processor's caches, which never happens on a device.
    """
    ratios = []
    for index in range(-1, rounds // BURST):
        pair = (first, second) if index % 2 else (second, first)
        times = {}
        for call in pair:
            call()
            started = time.process_time_ns()
            for _ in range(BURST):
                call()
            times[call] = time.process_time_ns() - started
        if index >= 0:
            ratios.append(times[first] / times[second])
    return statistics.median(ratios)


def _cold_compile(directory: Path) -> float:
    encoder = checkpoint(directory, "resnet18")
    command = "from streamsplit_compile.cli.main import main; main()"
    arguments = ["compile", str(encoder), "--targets", "rpi4,m2", "-o", str(directory / "cold"), "--json"]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", command, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def _recompiles(directory: Path, rounds: int) -> tuple[float, float]:
    """Median seconds of a recompile of every block and of the last block alone, without the parity check."""
    base = _bundle(directory, "resnet18", "auto")
    tensors = read_tensors(checkpoint(directory, "resnet18"))
    everything = {n: v + np.float32(1e-3) * v if v.dtype == np.float32 else v for n, v in tensors.items()}
    one = {**tensors, "projection.weight": tensors["projection.weight"] * np.float32(1.01)}
    windows, _ = calibration_windows(None, 16_000, 16_000, 8_000, 16, 0)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(max(rounds, 5)):
        for found, weights in zip(times, (everything, one), strict=True):
            started = time.perf_counter()
            recompile(base, weights, directory / "again", generation=2, windows=windows, reference=None)
            found.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def _affine_patch_share(directory: Path) -> float:
    """Bytes of the patches for changed affine parameters, as a share of the bundle's device files."""
    base = _bundle(directory, "resnet18", "auto", keep_norms=True)
    tensors = read_tensors(checkpoint(directory, "resnet18"))
    rng = np.random.default_rng(0)
    for name in tensors:
        if ".bn" in name and name.endswith(("weight", "bias")):
            tensors[name] = (tensors[name] + rng.normal(0, 0.01, tensors[name].shape)).astype(np.float32)
    windows, _ = calibration_windows(None, 16_000, 16_000, 8_000, 4, 0)
    new = recompile(base, tensors, directory / "norms", generation=2, windows=windows, reference=None)
    patched = whole = 0
    for block in base.manifest.info.blocks:
        old_bytes, new_bytes = base.block_bytes(block, "onnx-fp32"), new.block_bytes(block, "onnx-fp32")
        whole += len(new_bytes)
        patched += 0 if old_bytes == new_bytes else len(make_patch(old_bytes, new_bytes))
    return patched / whole


def _rank_correlation(work: Path, encoders: Sequence[str], rounds: int) -> tuple[float, int]:
    """Spearman's rank correlation of predicted and measured block times over all encoders, cut into 12 blocks each."""
    predicted: list[float] = []
    measured: list[float] = []
    for name in encoders:
        bundle = _bundle(work / name, name, "12")
        predicted += bundle.manifest.info.targets["x86-64"].block_ms
        measured += measure_profile(bundle, "x86-64", runs=rounds).block_ms
    return float(spearmanr(predicted, measured).statistic), len(predicted)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ssc-bench-") as work:
        section = measure(Path(work), options.quick)
    return publish(section)


if __name__ == "__main__":
    main()
