"""Measures the front end's share of a device's time, and whole encoders against an earlier version.

    python -m tools.bench_lean [--against DIR] [--pairs 15] [--quick] [--no-publish]

Times come from `ssc profile` on one thread, with the code path that a device takes. The earlier version is the one from
`tools.bench_house`; each side compiles the same weights itself and is profiled in its own processes, in turn. With
SSC_TEST_WEIGHTS `mn04` has its published weights; times do not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamsplit_compile.bundle.soundscape import soundscape
from streamsplit_compile.encoder.encoders import new_encoder, save_checkpoint
from streamsplit_compile.encoder.published.importers import import_efficientat
from tools.bench_house import EARLIER, ROOT, Checkout, Pair, earlier, taking_turns, today
from tools.benchmarks import Section, publish, show

ENCODERS = {"mn04": "mn", "mobilenet_v3_small": "mobilenet_v3_small"}
SHARES = {"mn04": "at most 0.15", "mobilenet_v3_small": "at most 0.1"}
SPEEDUPS = {"mn04": ("mn04_speedup", "at least 2"), "mobilenet_v3_small": ("mobilenet_speedup", "at least 1.25")}
TARGET = "x86-64"
WEIGHTS = "SSC_TEST_WEIGHTS"
_COMPARED_WINDOWS = 40
_EMBED = """
import sys, numpy, runtime_edge
numpy.save(sys.argv[3], runtime_edge.open(sys.argv[1]).embed(numpy.load(sys.argv[2])))
"""


@dataclass(frozen=True)
class Profiled:
    """One encoder on one side."""

    side: Checkout
    bundle: Path

    def block_ms(self, runs: int) -> list[float]:
        """Median time of each block, measured in a separate process."""
        out = self.bundle.with_suffix(".profile.json")
        self.side.run(
            self.side.ssc, "profile", self.bundle, "--target", TARGET, "--variant", "onnx-fp32",
            "--threads", 1, "--runs", runs, "-o", out,
        )  # fmt: skip
        times: list[float] = json.loads(out.read_text())["block_ms"]
        return times

    def embeddings(self, audio: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Embeddings of the windows of some audio, in order."""
        out = self.bundle.with_suffix(".npy")
        self.side.run("-c", _EMBED, self.bundle, audio, out)
        found: np.ndarray[Any, np.dtype[np.float32]] = np.load(out)
        return found


def compiled(side: Checkout, name: str, checkpoint: Path, work: Path) -> Profiled:
    """The encoder as one side compiles it."""
    bundle = work / f"{name}-{side.name}"
    side.run(side.ssc, "compile", checkpoint, "--targets", TARGET, "-o", bundle)
    return Profiled(side, bundle)


def checkpoint_of(name: str, work: Path) -> Path:
    """A checkpoint that both versions read."""
    path, published = work / f"{name}.pt", os.environ.get(WEIGHTS)
    if name == "mn04" and published:
        import_efficientat(Path(published) / "mn04_as_mAP_432.pt", path, {})
        return path
    module, config = new_encoder(ENCODERS[name])
    save_checkpoint(ENCODERS[name], config, module, path)
    return path


def measure(sides: tuple[Checkout, Checkout], work: Path, pairs: int, runs: int, section: Section) -> None:
    """Measure share, speedup and agreement for each encoder."""
    audio = work / "audio.npy"
    np.save(audio, soundscape(1.0 + _COMPARED_WINDOWS / 2, 16_000, seed=5))
    worst = 0.0
    for name in ENCODERS:
        checkpoint = checkpoint_of(name, work)
        both = {side.name: compiled(side, name, checkpoint, work) for side in sides}
        shares: list[float] = []

        def whole_ms(side: Checkout, _: str, both: dict[str, Profiled] = both, shares: list[float] = shares) -> float:
            blocks = both[side.name].block_ms(runs)
            if side is sides[0]:
                shares.append(blocks[0] / sum(blocks))
            return sum(blocks)

        measured = taking_turns(f"lean, {name}, {runs} runs", sides, pairs, whole_ms, work / "pairs.jsonl", "")
        section.add(
            f"front_end_share.{name}", statistics.median(shares), SHARES[name],
            f"the front end's share of {name}'s time on the device, one thread, median of {pairs} profiles",
        )  # fmt: skip
        _speedup(section, name, measured)
        found = [both[side.name].embeddings(audio) for side in sides]
        worst = max(worst, float(np.abs(found[0] - found[1]).max()))
    section.add(
        "front_end_parity", worst, "at most 0.0001",
        f"largest difference of an embedding's values from {EARLIER}'s, both encoders, synthesised audio",
    )  # fmt: skip


def _speedup(section: Section, name: str, pairs: Sequence[Pair]) -> None:
    key, goal = SPEEDUPS[name]
    ratios = [1 / pair.ratio for pair in pairs]
    low, median, high = np.percentile(ratios, (25, 50, 75)).tolist()
    section.add(key, median, goal, f"{EARLIER}'s time for {name} over today's, median of {len(pairs)} pairs")
    section.detail(f"{name}: quartiles of that", f"{low:.2f}, {high:.2f}")
    times = (statistics.median(getattr(pair, side) for pair in pairs) for side in ("today", "earlier"))
    section.detail(f"{name}, today and {EARLIER}, medians, ms", ", ".join(f"{ms:.3f}" for ms in times))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, default=ROOT / ".cache" / "house" / EARLIER, help="earlier checkout")
    parser.add_argument("--pairs", type=int, default=15, help="of profiles [default: 15, with --quick 5]")
    parser.add_argument("--quick", action="store_true", help="fewer pairs")
    parser.add_argument("--no-publish", action="store_true", help="print the numbers and leave docs/ alone")
    options = parser.parse_args(arguments)
    pairs = min(options.pairs, 5) if options.quick else options.pairs
    sides = (today(), earlier(options.against))
    for side in sides:
        side.check()
    section = Section("lean", "The front end", f"python -m tools.bench_lean --pairs {pairs}", part="front_end")
    section.detail("processes that wanted to run when it began, mean of a minute", f"{os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory(prefix="ssc-bench-") as work:
        measure(sides, Path(work), pairs, 200, section)
    if options.no_publish:
        show(section)
        return {}
    return publish(section)


if __name__ == "__main__":
    main()
