"""Measures what contrastive objectives gain and cost: accuracy over steps and joules, with small batches and few data.

    python -m tools.bench_objectives --audio recordings/ --meter rapl [--jobs 1] [--hours 8] [--publish]

MobileNetV3-Small of width 0.75 learns from Speech Commands (`recordings/speech_commands/labels.csv`) without labels,
from random weights, with each objective, with all windows and with a quarter of them, in batches of 16 and of 128,
from three seeds; then, at one seed each, with a half and a tenth of the windows, and with larger encoders. Batches of
16 take eight times the steps, so that every run sees as many windows. After every pass over the recordings a linear
probe and the nearest neighbours are asked of fold 5.

Every run is a separate process on one core and adds a line to `--kept`, after which it is not measured again; no run
starts after `--hours`, and the runs that have bounds come first. Use parallel runs (`--jobs`) only with a target's
watts, which count each process's own seconds; a counter of the whole machine would add them up. `--publish` adds the
lines to docs/energy-runs.jsonl, whose runs also count as measured, so that the study may be done in parts, and makes
docs/energy.md from all of them. Compiled encoders are kept beside `--kept`. Without recordings nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from runtime_edge.errors import UsageError
from runtime_server.lab.clips import SAMPLE_RATE
from runtime_server.telemetry.energy import energy_source
from runtime_server.telemetry.server_metrics import PEAK_MEMORY, peak_memory_bytes
from runtime_server.telemetry.step_energy import StepEnergy
from runtime_server.training.embedding_metrics import knn_accuracy
from runtime_server.training.losses.objectives import DEFAULT, OBJECTIVES
from runtime_server.training.losses.objectives.interface import NEARBY
from streamsplit_compile.cost.targets import list_targets
from streamsplit_compile.encoder.encoders import load_encoder, new_encoder, save_checkpoint
from tools.benchmarks import DOCS, machine, publish
from tools.clip_probe import probe_clips
from tools.energy_page import section, write_page
from tools.esc10 import load_clips
from tools.sparse_training import HELD_OUT_FOLD, Stage, TrainingRun, compiled, stage, train
from tools.training_energy import with_idle_power

DATA = "speech_commands"
SMALL = "mobilenet_v3_small 0.75"
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    SMALL: ("mobilenet_v3_small", {"width": 0.75}),
    "mobilenet_v3_small 1.0": ("mobilenet_v3_small", {}),
    "efficientnet_b0": ("efficientnet_b0", {}),
    "resnet18": ("resnet18", {}),
}
SEEDS = range(3)
PUBLISHED = DOCS / "energy-runs.jsonl"
PASSES, LARGE, THIN, STEPS = 6, 128, 16, 3
"""Passes over the recordings; large and small batch size; steps with large batches each time that windows arrive."""


@dataclass(frozen=True)
class Arm:
    """The settings of one run."""

    objective: str
    share: float
    batch: int
    seed: int
    encoder: str = SMALL

    def __str__(self) -> str:
        """The settings as text for people."""
        return f"{self.encoder}, {self.objective}, {self.share:.0%}, batches of {self.batch}, seed {self.seed}"


_NAMES = tuple(field.name for field in fields(Arm))


def arms() -> list[Arm]:
    """All arms, those that have bounds first."""
    bounds = [arm for seed in SEEDS for arm in (Arm("simclr", 1.0, LARGE, seed), Arm(DEFAULT, 1.0, THIN, seed))]
    grid = [
        Arm(objective, share, batch, seed)
        for seed in SEEDS
        for share in (1.0, 0.25)
        for batch in (THIN, LARGE)
        for objective in OBJECTIVES
    ]
    thinner = [Arm(objective, share, THIN, 0) for share in (0.5, 0.1) for objective in OBJECTIVES]
    larger = [Arm(objective, 1.0, THIN, 0, encoder) for encoder in list(ENCODERS)[1:] for objective in OBJECTIVES]
    return list(dict.fromkeys([*bounds, *grid, *thinner, *larger]))


@dataclass(frozen=True)
class KeptRuns:
    """Files of finished runs, one line of JSON for each. New runs go to the last file."""

    files: Sequence[Path]

    def read(self) -> dict[Arm, dict[str, Any]]:
        """Read the runs by arm. Raises UsageError for a line that is not a run."""
        found = {}
        for file in self.files:
            for number, line in enumerate(file.read_text().splitlines() if file.exists() else (), 1):
                try:
                    run = json.loads(line)
                    found[Arm(**{name: run[name] for name in _NAMES})] = run
                except (ValueError, KeyError, TypeError):
                    raise UsageError(f"{file}:{number}: not a run of this study; remove the line") from None
        return found

    def add(self, runs: Sequence[dict[str, Any]]) -> None:
        """Append runs to the last file."""
        self.files[-1].parent.mkdir(parents=True, exist_ok=True)
        with self.files[-1].open("a") as lines:
            lines.writelines(json.dumps(run) + "\n" for run in runs)


def staged(encoder: str, seed: int, given: argparse.Namespace) -> Stage:
    """The recordings, and an encoder with random weights, which is compiled once for all its runs."""
    clips = load_clips(given.audio, DATA, SAMPLE_RATE)
    name, config = ENCODERS[encoder]
    config = {**config, "seed": seed}
    kept = given.kept.parent / "compiled" / f"{encoder}, seed {seed}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=kept.parent) as work:
            making = Path(work) / "made"
            making.mkdir()
            save_checkpoint(name, config, new_encoder(name, config)[0], making / "encoder.pt", untrained=True)
            compiled(load_encoder(making / "encoder.pt"), given.audio / DATA, making)
            with suppress(OSError):  # a run beside this one was faster
                making.rename(kept)
    clips = clips.at_most(8) if given.quick else clips
    return stage(load_encoder(kept / "encoder.pt"), clips, given.audio / DATA, kept)


def measured(arm: Arm, given: argparse.Namespace) -> dict[str, Any]:
    """Do one run in this process: accuracy before, and after each pass with the steps and energy used until then."""
    torch.set_num_threads(1)
    source = energy_source(given.meter)
    if source is None:
        raise UsageError(f"--meter {given.meter}: nothing counts joules here; name a target, such as rpi4")
    energy, points = StepEnergy(with_idle_power(source)), []
    heard = staged(arm.encoder, arm.seed, given)

    def note(model: Any) -> None:
        points.append({**asked(heard, model), **energy.use.told()})

    note(heard.start)
    run = TrainingRun(
        objective=arm.objective,
        kept_share=arm.share,
        passes=1 if given.quick else PASSES,
        steps_per_chunk=1 if given.quick else STEPS * LARGE // arm.batch,
        batch=arm.batch,
        learning_rate=1e-3,
        pause=NEARBY,
        seed=arm.seed,
    )
    train(heard, run, energy.step, note)
    memory = {"bytes": peak_memory_bytes(), "source": PEAK_MEMORY}
    asked_of = int((heard.clips.folds == HELD_OUT_FOLD).sum())
    return {**asdict(arm), "asked_of": asked_of, "points": points, "peak_memory": memory, "machine": machine()}


def asked(heard: Stage, model: Any) -> dict[str, float]:
    """Accuracies of a linear probe and of the nearest neighbours on fold 5."""
    embeddings, clips = heard.embedded(model), heard.clips
    out = torch.from_numpy(clips.folds == HELD_OUT_FOLD)
    flat, labels = torch.from_numpy(embeddings.mean(1)), torch.from_numpy(clips.labels)
    return {
        "probe": probe_clips(embeddings, clips.labels, clips.folds, HELD_OUT_FOLD),
        "knn": knn_accuracy(flat[~out], labels[~out], 5, flat[out], labels[out]),
    }


def measure_all(
    given: argparse.Namespace, wanted: Sequence[Arm], kept: KeptRuns, clock: Callable[[], float] = time.monotonic
) -> None:
    """Measure all runs that are not kept yet, each in a separate process, until the hours are over."""
    began, known, one_by_one = clock(), kept.read(), threading.Lock()

    def measure(arm: Arm) -> None:
        if clock() - began >= given.hours * 3600:
            return
        command = [sys.executable, "-m", "tools.bench_objectives", "--arm", json.dumps(asdict(arm))]
        command += ["--audio", str(given.audio), "--meter", given.meter, "--kept", str(given.kept)]
        command += ["--quick"] if given.quick else []
        line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        run = json.loads(line)
        with one_by_one:
            kept.add([run])
        print(f"{arm}: probe {run['points'][-1]['probe']:.3f}", flush=True)

    with ThreadPoolExecutor(given.jobs) as several:
        list(several.map(measure, [arm for arm in wanted if arm not in known]))


def main(arguments: list[str] | None = None) -> None:
    """Do the missing runs; without the recordings, do nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, default=os.environ.get("SSC_TEST_AUDIO"))
    parser.add_argument("--meter", default="rapl", help="As of `ssc server run`.")
    parser.add_argument("--kept", type=Path, default=Path(".cache/objectives.jsonl"), help="Gets the finished runs.")
    parser.add_argument("--jobs", type=int, default=1, help="Runs beside each other.")
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("--quick", action="store_true", help="Few recordings, one pass and two runs, for a trial.")
    parser.add_argument("--publish", action="store_true", help="Write docs/energy* and docs/benchmarks.*.")
    parser.add_argument("--arm", type=json.loads, help="Measure this run alone and print it.")
    given = parser.parse_args(arguments)
    if given.audio is None:
        print("left out: --audio (SSC_TEST_AUDIO) is needed")
        return
    given.audio = Path(given.audio)
    if given.jobs > 1 and given.meter not in list_targets():
        raise UsageError(f"--jobs {given.jobs}: {given.meter} would count all runs together; name a target")
    if given.arm is not None:
        print(json.dumps(measured(Arm(**given.arm), given)))
        return
    wanted, kept = arms(), KeptRuns([PUBLISHED, given.kept])
    if given.quick:
        kept = KeptRuns([given.kept.with_suffix(".quick.jsonl")])
        wanted = [arm for arm in wanted if arm.batch == THIN][:2]
    measure_all(given, wanted, kept)
    if given.publish and not given.quick:
        published, found = KeptRuns([PUBLISHED]), kept.read()
        known = published.read()
        published.add([run for arm, run in found.items() if arm not in known])
        runs = [found[arm] for arm in wanted if arm in found]
        write_page(runs, len(wanted))
        figures = section(runs, len(wanted))
        if figures.numbers:
            publish(figures)


if __name__ == "__main__":
    main()
