"""Measures the cost of contrastive objectives: energy per step and until an accuracy, peak memory, bytes received.

    python -m tools.training_energy encoder.pt --audio recordings/ --meter rapl [--objectives simclr,moco] [--out FILE]

Each objective trains in a separate process on the same recordings (`tools.sparse_training`), with a linear probe after
every pass over them. The machine's idle power is first measured for ten seconds, unless the source states it. Every
figure is given with the meter that counted it; FILE gets a line of JSON for each objective.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from runtime_edge.errors import UsageError
from runtime_server.telemetry.energy import EnergySource, energy_source
from runtime_server.telemetry.server_metrics import PEAK_MEMORY, peak_memory_bytes
from runtime_server.telemetry.step_energy import EnergyUse, StepEnergy
from runtime_server.training.losses.objectives import OBJECTIVES
from streamsplit_compile.encoder.encoders import load_encoder
from tools.esc10 import load_clips
from tools.sparse_training import TrainingRun, learn, stage

IDLE_S = 10.0
RECEIVED = "payloads of the windows, counted where they are encoded"


@dataclass
class Progress:
    """The accuracy on windows after each pass, and the energy used for training until then."""

    points: list[tuple[float, EnergyUse]] = field(default_factory=list)

    def until(self, accuracy: float) -> EnergyUse | None:
        """The energy used until the first pass that reached an accuracy; None if none did."""
        return next((use for reached, use in self.points if reached >= accuracy), None)


def with_idle_power(
    source: EnergySource, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic
) -> EnergySource:
    """The source with its idle power measured now, unless the source states it."""
    if source.idle_w is None:
        before, began = source.joules(), clock()
        sleep(IDLE_S)
        source.idle_w = (source.joules() - before) / (clock() - began)
    return source


def measured(given: argparse.Namespace, objective: str) -> dict[str, Any]:
    """Measure one objective in this process."""
    torch.set_num_threads(1)
    source = energy_source(given.meter)
    if source is None:
        raise UsageError(f"--meter {given.meter}: nothing counts joules here; name a target, such as rpi4")
    energy, progress = StepEnergy(with_idle_power(source)), Progress()
    with tempfile.TemporaryDirectory() as work:
        staged = stage(load_encoder(given.encoder), load_clips(given.audio), given.audio, Path(work))
        run = TrainingRun(
            objective=objective,
            batch=given.batch,
            passes=given.passes,
            learning_rate=given.learning_rate,
            seed=given.seed,
        )
        result = learn(
            staged,
            run,
            note=lambda _: None,
            around_step=energy.step,
            after_pass=lambda model: progress.points.append((staged.judged(model).window, energy.use)),
        )
    reached = progress.until(given.accuracy)
    return {
        "objective": objective,
        "batch": given.batch,
        "seed": given.seed,
        "before": result.before.window,
        "after_each_pass": [accuracy for accuracy, _ in progress.points],
        "energy": energy.use.told(),
        "accuracy": given.accuracy,
        "to_accuracy": reached and reached.told(),
        "peak_memory": {"bytes": peak_memory_bytes(), "source": PEAK_MEMORY},
        "received": {"bytes": result.received_bytes, "source": RECEIVED},
    }


def table(found: list[dict[str, Any]]) -> str:
    """The table for the page."""
    accuracy = found[0]["accuracy"]
    rows = [
        "| objective | J a step, with idle | above idle | "
        f"J to {accuracy:.0%} of windows, with idle | above idle | accuracy | peak memory | received |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        use, reached = one["energy"], one["to_accuracy"] or {}
        figures = [
            one["objective"],
            *(f"{use[name]:.3g}" for name in ("joules_a_step", "above_idle_a_step")),
            *(f"{reached[name]:.3g}" if reached else "not reached" for name in ("joules", "above_idle_joules")),
            f"{one['after_each_pass'][-1]:.1%}",
            f"{one['peak_memory']['bytes'] / 1e6:.0f} MB",
            f"{one['received']['bytes'] / 1e6:.2f} MB",
        ]
        rows.append(f"| {' | '.join(figures)} |")
    sources = dict.fromkeys(one[name]["source"] for name in ("energy", "peak_memory", "received") for one in found)
    return "\n".join([*rows, "", f"Counted by: {'; '.join(sources)}."])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--meter", default="rapl", help="As of `ssc server run`.")
    parser.add_argument("--objectives", default=",".join(OBJECTIVES))
    parser.add_argument("--accuracy", type=float, default=0.5, help="Of fold 5's windows, for the energy up to it.")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--passes", type=int, default=TrainingRun.passes)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="For an encoder from random weights.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Gets a line of JSON for each objective.")
    given = parser.parse_args()
    objectives = given.objectives.split(",")
    if len(objectives) == 1:
        print(json.dumps(measured(given, objectives[0])))
        return
    found = []
    for objective in objectives:
        # The last --objectives takes effect. Each objective needs its own process, since peak memory is per process.
        command = [sys.executable, "-m", "tools.training_energy", *sys.argv[1:], "--objectives", objective]
        line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        found.append(json.loads(line))
        if given.out is not None:
            with given.out.open("a") as file:
                file.write(line + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
