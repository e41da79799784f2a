"""Runs that are made up so that every ratio can be worked out by hand."""

import pytest

from runtime_server.lab.accuracy import Accuracy
from runtime_server.lab.figures import Figures
from runtime_server.lab.policy_bench import EncoderFigures, PlayedScenario, PolicyBench
from runtime_server.lab.scenarios import ScenarioStep


@pytest.fixture
def run():
    """`run(policy, repeat, latency, up, energy)` makes one."""
    return _run


def _run(policy, repeat, latency, up, energy, cut="waveform"):
    return Figures(
        encoder="toy", scenario="lte", policy=policy, repeat=repeat, windows=4, missing=0,
        latency_ms={"p50": latency, "p95": 2 * latency, "p99": 3 * latency},
        parts_ms={"device": latency / 4, "network": latency / 2, "server": latency / 4, "wait": 0.0},
        up_mb_per_hour=up, down_mb_per_hour=1.0,
        energy_mj={"compute": energy / 2, "radio": energy / 2, "total": energy},
        fidelity=0.99, fidelity_worst=0.9, finished={"server": 4}, cuts={cut: 4}, changes=0, reaction_s=[0.7],
        processor_share=0.1, memory_mb=100.0, sequence=[cut] * 4, frame_bytes=[10] * 4, times_s=[0.5, 1.0, 1.5, 2.0],
    )  # fmt: skip


@pytest.fixture
def bench():
    accuracy = {
        "pcm16": Accuracy(0.9, 0.8, 0.2, 40),
        "opus-6": Accuracy(0.5, 0.4, 0.1, 40),
        "opus-12": Accuracy(0.9, 0.8, 0.2, 40),
        "lte/table": Accuracy(0.89, 0.8, 0.2, 40),
    }
    runs = [
        _run("pcm16", 0, 200.0, 100.0, 50.0), _run("pcm16", 1, 220.0, 100.0, 50.0),
        _run("opus-6", 0, 150.0, 4.0, 20.0), _run("opus-12", 0, 150.0, 16.0, 22.0),
        _run("table", 0, 40.0, 20.0, 20.0, "one"), _run("table", 1, 40.0, 20.0, 20.0, "one"),
    ]  # fmt: skip
    return PolicyBench(
        created="2026-01-01T00:00:00", command="ssc bench run lte", target="rpi4", seconds=20.0, repeats=2, seed=0,
        bytes_are="the device's interface", audio="a soundscape", machine={"cores": "2"}, runs=runs,
        scenarios={"lte": PlayedScenario(
            "a link", [ScenarioStep(0.0, 2.0, 80.0, 0.0, 0.0), ScenarioStep(10.0, 1.0, 90.0, 0.0, 0.0)]
        )},
        encoders={"toy": EncoderFigures(cuts=["waveform", "one", "two"], block_ms=[1.0, 2.0], accuracy=accuracy)},
    )  # fmt: skip
