"""Compares TFLite with XNNPACK and onnxruntime, for each shipped encoder, in float32 and in int8.

    python -m tools.bench_runtimes [--audio recordings/] [--rounds 60] [--arm] [--publish]

Both runtimes compute every block of one bundle on one thread in one process, in turn, as a device does. With
`--audio` int8 is calibrated on recordings, which changes its scales but not its speed. SSC_TEST_WEIGHTS may name a
directory with EfficientAT's checkpoint; with it `mn` is also measured. `--arm` also counts the instructions of a window
on an emulated Cortex-A72, which takes some minutes for each encoder: these are not seconds, but they are the same on
every machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime_edge.formats.bundle import Bundle
from runtime_edge.inference.contract import RuntimeOptions
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder
from tools.arm.arm_check import SITES
from tools.arm.instructions import InstructionCounter
from tools.arm.machine import REPOSITORY, EmulatedMachine, SitePackages
from tools.bench_compiler import checkpoint, import_mn
from tools.benchmarks import Section, publish, show

ENCODERS = ("mobilenet_v3_small", "resnet18", "efficientnet_b0")
VARIANTS = ("onnx-fp32", "tflite-fp32", "onnx-int8", "tflite-int8")
ARM_SITES = {
    "onnx": SITES[1],
    "tflite": SitePackages("ai-edge-litert", "tflite", "edge-tflite", ("ai-edge-litert==2.3.0", "numpy==2.4.6")),
}
"""The versions that pip installs there today."""
BURST = 5
"""Windows that are timed together, as on a device on which only the model uses the caches."""


@dataclass(frozen=True)
class Times:
    """Medians for one encoder, in milliseconds a window on one thread, and the spread of the ratios of the rounds."""

    ms: dict[str, float]
    rounds: dict[str, list[float]]

    def ratio(self, precision: str) -> float:
        """Onnxruntime's time over TFLite's, median over the rounds: above 1, TFLite is faster."""
        onnx, tflite = self.rounds[f"onnx-{precision}"], self.rounds[f"tflite-{precision}"]
        return statistics.median(a / b for a, b in zip(onnx, tflite, strict=True))


def compiled(name: str, work: Path, audio: Path | None) -> Bundle:
    """Compile a bundle with all four variants."""
    options = CompileOptions(
        [load_target("rpi4")], calibrate=audio, formats=("onnx", "tflite"), precisions=("fp32", "int8")
    )
    return compile_encoder(load_encoder(checkpoint(work / name, name)), options, work / name / "bundle")


def measured(bundle: Bundle, rounds: int) -> Times:
    """Time every variant in turn, `rounds` times."""
    prefixes = {variant: Prefix(bundle, variant, RuntimeOptions(threads=1)) for variant in VARIANTS}
    window = np.random.default_rng(0).normal(0, 0.1, bundle.manifest.info.front_end.window_samples).astype(np.float32)
    found: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for turn in range(-2, rounds):
        for variant in VARIANTS if turn % 2 else reversed(VARIANTS):
            prefixes[variant].embed(window)
            started = time.perf_counter()
            for _ in range(BURST):
                prefixes[variant].embed(window)
            if turn >= 0:
                found[variant].append((time.perf_counter() - started) / BURST * 1e3)
    return Times({variant: statistics.median(times) for variant, times in found.items()}, found)


def instructions(bundle: Bundle, counter: InstructionCounter) -> dict[str, float]:
    """Instructions of a window on the emulated Cortex-A72, by variant."""
    return {variant: counter.window(ARM_SITES[variant.partition("-")[0]], bundle.path, variant) for variant in VARIANTS}


def section_of(times: dict[str, Times], counts: dict[str, dict[str, float]], command: str) -> Section:
    """The section for docs/benchmarks.md."""
    section = Section("lean", "TFLite against onnxruntime", command, "runtimes")
    for precision in ("fp32", "int8"):
        for name, of in times.items():
            section.add(
                f"tflite_speedup_{precision}.{name}",
                of.ratio(precision),
                "",
                f"time of a window in onnxruntime over TFLite with XNNPACK, {precision}, one thread: "
                f"{of.ms[f'onnx-{precision}']:.3g}, {of.ms[f'tflite-{precision}']:.3g} ms",
            )
        for name, of_arm in counts.items():
            onnx, tflite = of_arm[f"onnx-{precision}"], of_arm[f"tflite-{precision}"]
            section.add(
                f"tflite_fewer_instructions_{precision}.{name}",
                onnx / tflite,
                "",
                f"instructions of a window on a Cortex-A72 in onnxruntime over TFLite, {precision}: "
                f"{onnx / 1e6:.3g}, {tflite / 1e6:.3g} million",
            )
    return section


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and, if asked, publish."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--audio", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="ten rounds")
    parser.add_argument("--arm", action="store_true", help="count the instructions of an emulated Cortex-A72, too")
    parser.add_argument("--publish", action="store_true")
    arguments = parser.parse_args(argv)
    rounds = 10 if arguments.quick else arguments.rounds
    with tempfile.TemporaryDirectory(prefix="ssc-") as work:
        names = [*ENCODERS, *import_mn(Path(work))]
        bundles = {name: compiled(name, Path(work), arguments.audio) for name in names}
        times = {name: measured(bundle, rounds) for name, bundle in bundles.items()}
        counter = InstructionCounter(EmulatedMachine(REPOSITORY / ".cache" / "arm")) if arguments.arm else None
        counts = {name: instructions(bundle, counter) for name, bundle in bundles.items()} if counter else {}
    command = f"python -m tools.bench_runtimes --rounds {rounds}{' --arm' if arguments.arm else ''}"
    (publish if arguments.publish else show)(section_of(times, counts, command))


if __name__ == "__main__":
    main()
