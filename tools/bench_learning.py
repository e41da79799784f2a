"""Measures what learning gains on real recordings: before, after, with each term alone, and with all as raw audio.

    python -m tools.bench_learning [--quick] [--ablation] [--audio DIR] [--weights mn04_as_mAP_432.pt] [--kept FILE]

Two starts, three seeds each. `random`: MobileNetV3-Small from random weights (the seed's). `room`: the AudioSet-trained
mn04, with every recording as heard by another microphone in another room (the seed's). Four devices play the recordings
of ESC-10's folds 1 to 4 without labels; 75 % of the windows are missing and the rest comes from mixed cuts
(`tools.sparse_training`). A linear probe (`tools.clip_probe`) then gets the labels of folds 1 to 4 and is judged on
fold 5. With `--ablation`, the task alone and the task with each term that the method compares are measured instead,
from both starts, with all windows and with a quarter of them.

The recordings and the weights are not part of the project: `--audio` (or SSC_TEST_AUDIO) is a folder with
esc10/labels.csv and its recordings, `--weights` (or SSC_TEST_WEIGHTS, a directory) is EfficientAT's checkpoint.
Without them nothing is measured.

It takes hours. With `--kept FILE` every probe is kept there and not measured again, so that an interrupted run can
continue, and several runs can share the work: `--only random` and `--only room`, then one without either to publish;
`--seeds 1` measures only the first seed. The measurements so far are in docs/learning-probes.jsonl.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from runtime_server.training.augment import AugmentConfig
from streamsplit_compile.encoder.encoders import load_encoder, new_encoder, save_checkpoint
from tools.benchmarks import Section, publish
from tools.clip_probe import Probed
from tools.esc10 import Clips, load_clips
from tools.room import Room
from tools.sparse_training import TERMS, Stage, TrainingRun, learn, stage

SEEDS = range(3)
TOLERATED = 0.022
"""How much mixed cuts with missing windows may lose compared with sending everything (docs/method.md, section 7)."""
_COLUMNS = "recordings and windows of fold 5, recordings and windows of all folds (%, ± over seeds)"
_CHECKPOINT = "mn04_as_mAP_432.pt"


_USUAL = AugmentConfig()


@dataclass(frozen=True)
class StartingWeights:
    """Where learning starts, and how fast it goes from there."""

    name: str
    title: str
    learning_rate: float
    passes: int
    augment: AugmentConfig = _USUAL


RANDOM = StartingWeights("random", "MobileNetV3-Small from random weights", 1e-3, 4)
# Trained weights need harder views: with the usual ones they gained nothing.
_HARDER = AugmentConfig(time_mask=0.5, frequency_mask=0.5, noise=0.3, mix=0.3)
ROOM = StartingWeights("room", "AudioSet-trained mn04 in another room", 1e-4, 3, _HARDER)
STARTS = (RANDOM, ROOM)
FIRST_ROOM = 2
"""The first room measured: the settings were tuned in room 1."""
ARMS = {
    "task": TrainingRun(),
    "task, raw": TrainingRun(kept_share=1.0, raw=True),
    "hybrid": TrainingRun(TERMS["hybrid"]),
    "hybrid, raw": TrainingRun(TERMS["hybrid"], kept_share=1.0, raw=True),
    "sw": TrainingRun(TERMS["sw"]),
    "laplacian": TrainingRun(TERMS["laplacian"]),
}
"""Runs of each start and seed; the server's defaults first."""
ABLATION = ("task", "task+mse", "task+kl", "task+mmd", "task+sw", "task+laplacian", "hybrid")
_SAME = {"hybrid, sparse": "hybrid", "task, sparse": "task"}
"""Runs of the ablation that are among `ARMS` and so need not be measured again."""


@dataclass
class ProbedRuns:
    """The probes of all seeds, by start and arm."""

    kept: Path | None = None
    """File of earlier measurements as JSON lines, to which new ones are added."""
    probes: dict[tuple[str, str], list[Probed]] = field(default_factory=dict)

    def measured(self, start: str, seed: int, arm: str, measure: Callable[[], Probed]) -> Probed:
        """The probe of the next seed, measured now or kept from before."""
        key, probed = [start, seed, arm], None
        if self.kept is not None and self.kept.exists():
            for line in map(json.loads, self.kept.read_text().splitlines()):
                probed = Probed(**line["probed"]) if line["key"] == key else probed
        if probed is None:
            print(f"{start}, seed {seed}, {arm}", flush=True)
            probed = measure()
            if self.kept is not None:
                with self.kept.open("a") as lines:
                    lines.write(json.dumps({"key": key, "probed": asdict(probed)}) + "\n")
        self.probes.setdefault((start, arm), []).append(probed)
        return probed

    def mean(self, start: str, arm: str, what: str = "window") -> float:
        """The mean over the seeds."""
        return statistics.mean(getattr(probed, what) for probed in self.probes[start, arm])

    def told(self, start: str, arm: str) -> str:
        """Text with each number's mean and, if there are several seeds, its standard deviation."""
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
    parser.add_argument("--kept", type=Path, metavar="FILE", help="Go on from what is kept there.")
    parser.add_argument("--seeds", type=int, choices=range(1, len(SEEDS) + 1), default=len(SEEDS), help="How many.")
    parser.add_argument("--only", choices=[start.name for start in STARTS], help="One start, and nothing is published.")
    given = parser.parse_args(arguments)
    if given.audio is None or given.weights is None:
        print("left out: --audio (SSC_TEST_AUDIO) and --weights (SSC_TEST_WEIGHTS) are needed")
        return {}
    torch.set_num_threads(1)
    clips, weights = load_clips(Path(given.audio)), Path(given.weights)
    checkpoint = weights / _CHECKPOINT if weights.is_dir() else weights
    seeds = SEEDS[: 1 if given.quick else given.seeds]
    bench = LearningBench(clips, Path(given.audio), checkpoint, given.quick, ProbedRuns(given.kept), seeds)
    starts = [start for start in STARTS if given.only in (None, start.name)]
    content: dict[str, Any] = {}
    for section in (bench.ablation if given.ablation else bench.learning)(starts):
        if given.quick or given.only:
            print(*(" ".join(row) for row in section.rows), sep="\n")
        else:
            content = publish(section)
    return content


@dataclass(frozen=True)
class LearningBench:
    """The measurements and their data."""

    clips: Clips
    audio: Path
    checkpoint: Path
    quick: bool
    found: ProbedRuns
    seeds: Sequence[int] = SEEDS

    def learning(self, starts: Sequence[StartingWeights]) -> Iterator[Section]:
        """Measure the runs; yields the results so far after each start."""
        section = _section("what learning is worth", "", "learning")
        gap = Section("objectives", "What is lost against raw audio", "python -m tools.bench_learning", "raw")
        for start in starts:
            for seed in self.seeds:
                self._of_seed(start, seed, ARMS)
            _tell(section, gap, start, self.found)
            yield section
            yield gap

    def ablation(self, starts: Sequence[StartingWeights]) -> Iterator[Section]:
        """Compare the loss's terms; yields the results so far after each start."""
        runs = {
            _ablated(term, arm): TrainingRun(TERMS[term], kept_share=share)
            for term in ABLATION
            for arm, share in (("dense", 1.0), ("sparse", 0.25))
        }
        section = _section("the terms of its loss", " --ablation", "terms")
        for start in starts:
            for seed in self.seeds:
                self._of_seed(start, seed, runs)
            for term in ABLATION:
                dense, sparse = (self.found.mean(start.name, _ablated(term, arm)) for arm in ("dense", "sparse"))
                told = "windows of fold 5 right, all windows at mixed cuts; lost with a quarter; seeds"
                section.detail(
                    f"{start.title}, {term}: {told}",
                    f"{100 * dense:.1f} %; {100 * (dense - sparse):.1f}; {len(self.seeds)}",
                )
                name, of = term.removeprefix("task+"), "" if start is RANDOM else f"_{start.name}"
                section.numbers[f"terms{of}.{name}"] = round(dense, 4)
                section.numbers[f"terms_drop{of}.{name}"] = round(dense - sparse, 4)
            yield section

    def _of_seed(self, start: StartingWeights, seed: int, runs: Mapping[str, TrainingRun]) -> None:
        """Probe a start before anything is learnt, and after each run."""
        with tempfile.TemporaryDirectory(prefix="ssc-bench-") as work:
            staged = functools.cache(lambda: self.stage(start, seed, Path(work)))

            def before() -> Probed:
                return staged().judged(staged().start)

            known = self.found.measured(start.name, seed, "before", before)
            for arm, run in runs.items():
                learning = replace(
                    run,
                    learning_rate=start.learning_rate,
                    augment=start.augment,
                    passes=1 if self.quick else start.passes,
                    seed=seed,
                )

                def after(learning: TrainingRun = learning) -> Probed:
                    return learn(staged(), learning, known).after

                self.found.measured(start.name, seed, arm, after)

    def stage(self, start: StartingWeights, seed: int, work: Path) -> Stage:
        """The encoder and recordings of a seed."""
        if start is RANDOM:
            name, config, heard = "mobilenet_v3_small", {"seed": seed}, self.clips
            module, _ = new_encoder(name, config)
        else:
            name, config, heard = "mn", {}, self.clips.heard_through(Room(FIRST_ROOM + seed).hear)
            module, _ = new_encoder(name, config)
            module.load_state_dict(torch.load(self.checkpoint, weights_only=True))
        save_checkpoint(name, config, module, work / "encoder.pt")
        return stage(load_encoder(work / "encoder.pt"), heard, self.audio, work)


def _ablated(term: str, arm: str) -> str:
    return _SAME.get(f"{term}, {arm}", f"{term}, {arm}")


def _section(title: str, options: str, part: str) -> Section:
    return Section("server", f"The server: {title}", f"python -m tools.bench_learning{options}", part)


def _tell(section: Section, gap: Section, start: StartingWeights, found: ProbedRuns) -> None:
    name = start.name
    for what, ending, plural in (("window", "", "windows"), ("clip", "_clips", "recordings")):

        def add(number: str, value: float, goal: str, told: str, ending: str = ending) -> None:
            section.add(f"{number}.{name}{ending}", value, goal, f"{start.title}: {told}")

        before, after, raw = (found.mean(name, arm, what) for arm in ("before", "task", "task, raw"))
        other = max(found.mean(name, arm, what) for arm in ("hybrid", "sw", "laplacian"))
        add("probe_before", before, "", f"{plural} of fold 5 that a linear probe gets right, before")
        add("probe_after", after, f"at least {before:.4f}", "after, from a quarter of the windows at mixed cuts")
        add("probe_all_raw", raw, "", "after, from every window as raw audio")
        add("ablation", after, f"at least {other:.4f}", "after, against the best of hybrid loss and other terms alone")
        told = f"{start.title}: {plural} of fold 5 lost with a quarter of the windows, against every one as raw audio"
        gap.add(f"raw_gap.{name}{ending}", max(raw - after, 0.0), f"at most {TOLERATED}", told)
        told = f"{start.title}: {plural} of fold 5 right after training less before it, a quarter of the windows"
        gap.add(f"gained.{name}{ending}", after - before, "at least 0", told)
    for arm in ("before", *ARMS):
        section.detail(f"{start.title}, {arm}: {_COLUMNS}", found.told(name, arm))


if __name__ == "__main__":
    main()
