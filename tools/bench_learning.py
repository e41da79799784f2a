"""What learning is worth, on real recordings: before, after, after each term alone, and after everything as raw audio.

    python -m tools.bench_learning [--quick] [--ablation] [--audio DIR] [--weights mn04_as_mAP_432.pt]

Two starts, three seeds each. `random`: MobileNetV3-Small from random weights (the seed's). `room`: the AudioSet-trained
mn04, and every recording heard by another microphone in another room (the seed's). Four devices play the recordings
of ESC-10's folds 1 to 4, no labels are used, 75 % of the windows are missing and the rest comes from mixed cuts
(`tools.learning`). A linear probe (`tools.probe`) then sees labels of folds 1 to 4 and is judged on fold 5. With
`--ablation` the terms that the method compares are measured instead, with all windows and with a quarter of them.

The recordings and the weights are not part of the project: `--audio` (or SSC_TEST_AUDIO) holds esc10/labels.csv and
what it names, `--weights` (or SSC_TEST_WEIGHTS, a directory) is EfficientAT's checkpoint.
Without them nothing is measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from runtime_server.augment import AugmentConfig
from streamsplit_compile.encoders import load_encoder, new_encoder, save_checkpoint
from tools.benchmarks import Section, publish
from tools.esc10 import Clips, load_clips
from tools.learning import TERMS, Learning, Stage, learn, stage
from tools.probe import Probed
from tools.room import Room

SEEDS = range(3)
TOLERATED = 0.022
"""What mixed cuts with windows missing may cost against everything sent (METHOD section 7)."""
_COLUMNS = "recordings and windows of fold 5, recordings and windows of all folds (%, ± over seeds)"
_CHECKPOINT = "mn04_as_mAP_432.pt"


_USUAL = AugmentConfig()


@dataclass(frozen=True)
class Start:
    """Where learning starts, and how fast it goes from there."""

    name: str
    title: str
    learning_rate: float
    passes: int
    augment: AugmentConfig = _USUAL


RANDOM = Start("random", "MobileNetV3-Small from random weights", 1e-3, 4)
# What is trained already must be shown something harder: with the usual views it gained nothing.
_HARDER = AugmentConfig(time_mask=0.5, frequency_mask=0.5, noise=0.3, mix=0.3)
ROOM = Start("room", "AudioSet-trained mn04 in another room", 1e-4, 3, _HARDER)
FIRST_ROOM = 2
"""Its settings were found in room 1, which is not measured."""
ARMS = {
    "after": Learning(),
    "task": Learning(TERMS["task"]),
    "sw": Learning(TERMS["sw"]),
    "laplacian": Learning(TERMS["laplacian"]),
    "all_raw": Learning(kept_share=1.0, raw=True),
}
"""Runs of each start and seed."""
ABLATION = ("task+mse", "task+kl", "task+mmd", "task+sw", "task+laplacian", "hybrid")


@dataclass
class Found:
    """One probe for each seed, by start and arm."""

    probes: dict[tuple[str, str], list[Probed]] = field(default_factory=dict)

    def add(self, start: str, arm: str, probed: Probed) -> None:
        """Of the next seed."""
        self.probes.setdefault((start, arm), []).append(probed)

    def mean(self, start: str, arm: str, what: str = "window") -> float:
        """Over the seeds."""
        return statistics.mean(getattr(probed, what) for probed in self.probes[start, arm])

    def told(self, start: str, arm: str) -> str:
        """Mean and, with several seeds, standard deviation over the seeds of every number."""
        rows = [asdict(probed) for probed in self.probes[start, arm]]
        parts = []
        for name in rows[0]:
            values = [100 * row[name] for row in rows]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            parts.append(f"{statistics.mean(values):.1f}{spread}")
        return ", ".join(parts)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and publish; nothing without the recordings and the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="One seed and one pass, and nothing is published.")
    parser.add_argument("--ablation", action="store_true", help="The terms that the method compares.")
    parser.add_argument("--audio", type=Path, default=os.environ.get("SSC_TEST_AUDIO"))
    parser.add_argument("--weights", type=Path, default=os.environ.get("SSC_TEST_WEIGHTS"))
    given = parser.parse_args(arguments)
    if given.audio is None or given.weights is None:
        print("left out: --audio (SSC_TEST_AUDIO) and --weights (SSC_TEST_WEIGHTS) are needed")
        return {}
    torch.set_num_threads(1)
    clips, weights = load_clips(Path(given.audio)), Path(given.weights)
    checkpoint = weights / _CHECKPOINT if weights.is_dir() else weights
    measure = _measure_ablation if given.ablation else _measure
    content: dict[str, Any] = {}
    for section in measure(clips, Path(given.audio), checkpoint, given.quick):
        if given.quick:
            print(*(" ".join(row) for row in section.rows), sep="\n")
        else:
            content = publish(section)
    return content


def _measure(clips: Clips, audio: Path, checkpoint: Path, quick: bool) -> Iterator[Section]:
    """What was found so far, after each start."""
    found, began, section = Found(), time.monotonic(), _section("what learning is worth", "", "learning")
    for start in (RANDOM, ROOM):
        for seed, staged, before in _stages(start, clips, audio, checkpoint, quick):
            found.add(start.name, "before", before)
            for arm, run in ARMS.items():
                print(f"{start.name}, seed {seed}, {arm}", flush=True)
                found.add(start.name, arm, learn(staged, _of(run, start, seed, quick), before).after)
        _tell(section, start, found)
        section.detail(f"{start.title}: measured in", f"{(time.monotonic() - began) / 60:.0f} min")
        yield section


def _section(title: str, options: str, part: str) -> Section:
    return Section("server", f"The server: {title}", f"python -m tools.bench_learning{options}", part)


def _tell(section: Section, start: Start, found: Found) -> None:
    name = start.name
    for what, ending, plural in (("window", "", "windows"), ("clip", "_clips", "recordings")):

        def add(number: str, value: float, goal: str, told: str, ending: str = ending) -> None:
            section.add(f"{number}.{name}{ending}", value, goal, f"{start.title}: {told}")

        before, after, raw = (found.mean(name, arm, what) for arm in ("before", "after", "all_raw"))
        single = max(found.mean(name, arm, what) for arm in ("task", "sw", "laplacian"))
        add("probe_before", before, "", f"{plural} of fold 5 that a linear probe gets right, before")
        add("probe_after", after, f"at least {before:.4f}", "after, from a quarter of the windows at mixed cuts")
        add("probe_all_raw", raw, "", "after, from every window as raw audio")
        add("raw_gap", max(raw - after, 0.0), f"at most {TOLERATED}", "lost against that")
        add("ablation", after, f"at least {single:.4f}", "after, against the best term alone")
    for arm in ("before", *ARMS):
        told = {"after": "hybrid"}.get(arm, arm)
        section.detail(f"{start.title}, {told}: {_COLUMNS}", found.told(name, arm))


def _measure_ablation(clips: Clips, audio: Path, checkpoint: Path, quick: bool) -> Iterator[Section]:
    found = Found()
    for seed, staged, before in _stages(RANDOM, clips, audio, checkpoint, quick):
        for term in ABLATION:
            for arm, share in (("dense", 1.0), ("sparse", 0.25)):
                print(f"{term}, {arm}, seed {seed}", flush=True)
                run = _of(Learning(TERMS[term], kept_share=share), RANDOM, seed, quick)
                found.add(term, arm, learn(staged, run, before).after)
    section = _section("the terms of its loss", " --ablation", "terms")
    for term in ABLATION:
        dense, sparse = found.mean(term, "dense"), found.mean(term, "sparse")
        section.detail(
            f"{term}: windows of fold 5 right, all windows at mixed cuts; lost with a quarter of them",
            f"{100 * dense:.1f} %; {100 * (dense - sparse):.1f}",
        )
        name = term.removeprefix("task+")
        section.numbers |= {f"terms.{name}": round(dense, 4), f"terms_drop.{name}": round(dense - sparse, 4)}
    yield section


def _stages(
    start: Start, clips: Clips, audio: Path, checkpoint: Path, quick: bool
) -> Iterator[tuple[int, Stage, Probed]]:
    """Each seed, its encoder and recordings, and what a probe makes of it before anything is learnt."""
    for seed in list(SEEDS)[: 1 if quick else None]:
        with tempfile.TemporaryDirectory(prefix="ssc-bench-") as work:
            if start is RANDOM:
                name, config, heard = "mobilenet_v3_small", {"seed": seed}, clips
                module, _ = new_encoder(name, config)
            else:
                name, config, heard = "mn", {}, clips.heard_through(Room(FIRST_ROOM + seed).hear)
                module, _ = new_encoder(name, config)
                module.load_state_dict(torch.load(checkpoint, weights_only=True))
            path = Path(work) / "encoder.pt"
            save_checkpoint(name, config, module, path)
            staged = stage(load_encoder(path), heard, audio, Path(work))
            before = staged.judged(staged.start)
            print(f"{start.name}, seed {seed}, before\n  {before}", flush=True)
            yield seed, staged, before


def _of(run: Learning, start: Start, seed: int, quick: bool) -> Learning:
    passes = 1 if quick else start.passes
    return replace(run, learning_rate=start.learning_rate, augment=start.augment, passes=passes, seed=seed)


if __name__ == "__main__":
    main()
