"""Measures what an adaptation costs a device: its bytes, the time until it runs, and the time of a window afterwards.

    python -m tools.bench_adapted --weights mn04_as_mAP_432.pt [--pairs 1000]

`mn04` is compiled with `--adaptable` and without. The adaptation changes every channel, by values that nothing packs
better than any others. Times are those of the device's own code on one thread; windows of both run in turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from runtime_edge.config import DeviceConfig
from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.graphs.onnx_norms import norms_of
from runtime_edge.formats.records.adaptation import Adaptation, AdaptedLayer
from runtime_edge.formats.records.envelope import seal
from runtime_edge.inference.prefix import Prefix
from runtime_edge.updates.engine_setup import adapted_engine, engine_for
from runtime_server.adaptation.adaptation_record import draft_adaptation, expected_of
from runtime_server.adaptation.classifier import norm_layers
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import LoadedEncoder, load_encoder
from streamsplit_compile.encoder.published.importers import import_efficientat
from streamsplit_compile.lowering.artifact_formats import Precision
from tools.benchmarks import Section, publish, show

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
LOADS, WARM_UP, TURNS = 20, 20, 10


def compiled(encoder: LoadedEncoder, out: Path, adaptable: bool) -> Bundle:
    """The encoder in each precision, with the automatic cuts."""
    options = CompileOptions([load_target("rpi4")], precisions=PRECISIONS, calibration_windows=4, adaptable=adaptable)
    return compile_encoder(encoder, options, out)


def random_layers(bundle: Bundle, encoder: LoadedEncoder, seed: int = 0) -> Iterator[AdaptedLayer]:
    """Changes of some ten percent in every channel of every layer that can be adapted."""
    random, module = np.random.default_rng(seed), encoder.graph.module
    for block in bundle.manifest.info.blocks:
        for name in norms_of(bundle.block_bytes(block, "onnx-fp32"), block):
            channels = module.get_parameter(f"{name}.weight").numel()
            scale, shift = random.normal(1.0, 0.1, channels).clip(0.5, 1.5), random.normal(0.0, 0.1, channels)
            values = (each.astype("<f2").tobytes() for each in (scale, shift))
            yield AdaptedLayer(block=block, name=name, scale=next(values), shift=next(values))


def adaptation_for(bundle: Bundle, layers: tuple[AdaptedLayer, ...]) -> Adaptation:
    """An adaptation with the self-tests that the device's own code computes."""
    draft = draft_adaptation(bundle, layers, "tools.bench_adapted")
    found = {variant: expected_of(Prefix(bundle, variant, adaptation=draft)) for variant in draft.self_tests}
    return replace(draft, self_tests=found)


@dataclass(frozen=True)
class Adapted:
    """A bundle, the same one compiled without `--adaptable`, and an adaptation."""

    bundle: Bundle
    plain: Bundle
    adaptation: Adaptation

    def load_ms(self, variant: str) -> float:
        """The median time to make an adapted engine beside the one that runs, and to test it."""
        config, times = DeviceConfig(variant=variant, target="rpi4", threads=1), []
        running = engine_for(self.bundle, config)
        running.ready()
        for _ in range(LOADS):
            began = time.perf_counter()
            adapted_engine(running, config, self.adaptation)
            times.append(1e3 * (time.perf_counter() - began))
        return statistics.median(times)

    def time_ratios(self, variant: str, pairs: int) -> list[float]:
        """Time of the adapted encoder over that of the folded one, for a window each, in turn.

        Where a loaded encoder lies in memory is worth some percent, so both are loaded anew several times.
        """
        found = []
        for turn in range(TURNS):
            loaded = [Prefix(self.bundle, variant, adaptation=self.adaptation), Prefix(self.plain, variant)]
            for prefix in loaded if turn % 2 else loaded[::-1]:
                prefix.load_all()
            window = np.random.default_rng(turn).normal(0, 0.1, loaded[0].buffers[0].shape[1:]).astype(np.float32)
            for prefix in loaded * WARM_UP:
                prefix.embed(window)
            for pair in range(pairs // TURNS):
                took = {}
                for place in (0, 1) if pair % 2 else (1, 0):
                    began = time.perf_counter()
                    loaded[place].embed(window)
                    took[place] = time.perf_counter() - began
                found.append(took[0] / took[1])
        return found


def measure(weights: Path, work: Path, pairs: int) -> Section:
    """Measure everything below `work`."""
    section = Section("adapt", "What an adaptation costs a device", "python -m tools.bench_adapted", part="device")
    import_efficientat(weights, work / "mn04.pt", {})
    encoder = load_encoder(work / "mn04.pt")
    bundle, plain = compiled(encoder, work / "adaptable", True), compiled(encoder, work / "plain", False)
    adaptation = adaptation_for(bundle, tuple(random_layers(bundle, encoder)))
    channels = sum(len(layer.scale) // 2 for layer in adaptation.layers)
    every = len(norm_layers(encoder.graph.module))
    record = seal("adaptation", subjects.table_key("rpi4", "pi-1"), 1, adaptation.to_json(), minisign.generate_key())
    told = f"mn04, {len(adaptation.layers)} of {every} layers, {channels} channels, three variants, signed"
    section.add("update_bytes", len(record), "at most 25000", told)
    found = Adapted(bundle, plain, adaptation)
    worst = max(found.load_ms(f"onnx-{precision}") for precision in PRECISIONS)
    section.add(
        "load_ms", worst, "at most 100", f"until it is ready, in the background; median of {LOADS}, slowest variant"
    )
    for precision in PRECISIONS:
        ratios = found.time_ratios(f"onnx-{precision}", pairs)
        low, high = np.percentile(ratios, (25, 75)).tolist()
        told = f"time over that of the file without --adaptable, {pairs} pairs, loaded {TURNS} times"
        told += f"; quartiles {low:.3f}, {high:.3f}"
        section.add(f"adaptable_time_ratio.{precision}", statistics.median(ratios), "at most 1.02", told)
    return section


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="The published checkpoint of mn04.")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--no-publish", action="store_true", help="Print the figures and leave docs/ alone.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ssc-bench-") as work:
        section = measure(given.weights, Path(work), given.pairs)
    show(section) if given.no_publish else publish(section)


if __name__ == "__main__":
    main()
