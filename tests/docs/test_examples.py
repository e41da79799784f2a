"""Every example runs as its first lines say, and so does the notebook, cell after cell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import runtime_edge

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "examples"
RATE = 16_000


def example(name, *arguments, cwd):
    """What it prints."""
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with clips of two labels, and a bundle that an example has made."""
    root, random, time = tmp_path_factory.mktemp("examples"), np.random.default_rng(0), np.arange(2 * RATE) / RATE
    for label in ("hiss", "tone"):
        (root / "clips" / label).mkdir(parents=True)
        for number in range(4):
            tone = 0.3 * np.sin(2 * np.pi * (500 + 50 * number) * time)
            sound = tone if label == "tone" else 0.1 * random.standard_normal(len(time)).clip(-3, 3)
            soundfile.write(root / "clips" / label / f"{number}.wav", sound, RATE)
    said = example("own_encoder.py", "bundle", cwd=root)
    assert "['waveform', " in said
    assert "rpi4 over lte: " in said
    return root


@pytest.fixture(scope="module")
def head(place):
    assert "head.json hiss tone" in example("train_head.py", "clips", "bundle", "head.json", cwd=place)
    return place / "head.json"


def test_a_recording_is_embedded_and_labelled(place, head):
    said = example("embed_file.py", "bundle", "clips/tone/1.wav", "head.json", cwd=place)
    assert "embeddings: (3, 32)" in said
    assert "0.50 to   1.50 s: tone" in said
    assert " s: " not in example("embed_file.py", "bundle", "clips/tone/1.wav", cwd=place)


def test_a_device_has_ten_lines(place, head):
    said = example("device_in_ten_lines.py", "clips/hiss/1.wav", "bundle", "head.json", cwd=place)
    assert said.splitlines()[-1] == "3 windows"
    assert "['hiss']" in said
    code = (EXAMPLES / "device_in_ten_lines.py").read_text().split('"""')[2]
    assert len([line for line in code.splitlines() if line]) <= 10


def test_events_are_read(place, head, broker_for_events):
    broker = broker_for_events.url
    command = [sys.executable, EXAMPLES / "read_events.py", broker, "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout.readline() == "listening\n"
        runtime_edge.run(
            str(place / "clips" / "tone" / "0.wav"), lambda result: None, broker=broker, bundle=place / "bundle",
            head=head, device="pi-1", state=place / "ssc-edge", realtime=False, drain_s=0, events="all",
        )  # fmt: skip
        heard = reader.stdout.read()
    assert len(heard.splitlines()) == 2
    assert "pi-1 result" in heard


@pytest.fixture
def broker_for_events(tmp_path):
    import asyncio

    from runtime_server.broker.broker_process import Broker
    from runtime_server.broker.hub import Hub
    from runtime_server.harness.ports import free_port

    broker = Broker(tmp_path / "broker", port=free_port())
    asyncio.run(broker.start())

    async def make_streams():
        hub = Hub(broker.url, "test")
        await hub.connect(create=True)
        await hub.close()

    asyncio.run(make_streams())
    yield broker
    asyncio.run(broker.stop())


def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path):
    notebook = json.loads((EXAMPLES / "first_steps.ipynb").read_text())
    assert all(not cell.get("outputs") for cell in notebook["cells"]), "outputs are the reader's"
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    (tmp_path / "cells.py").write_text("\n\n".join(cells))
    said = subprocess.run(
        [sys.executable, "cells.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    windows = [line for line in said.stdout.splitlines() if line.startswith("<") and " s: " in line]
    assert windows[0].startswith("<0 to 1 s: tone")
    assert windows[-1].startswith("<5 to 6 s: hiss")


def test_every_example_is_listed_and_run():
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    listed = (EXAMPLES / "README.md").read_text()
    own = Path(__file__).read_text()
    assert {name for name in files if f"({name})" not in listed or f'"{name}"' not in own} == set()
