"""The extra `bench`: measurements of policies, and their comparison."""

import os
import shutil

import pytest

EXTRAS = "bench"
BRINGS = {"bench", "demo", "web", "server", "compile", "edge", "audio", "metrics"}
SCORES = """
import numpy
from runtime_server.lab.clips import Clips, silhouette
labels = numpy.repeat([0, 1], 8)
embeddings = numpy.eye(2)[labels] + 0.01
fields = {name: [] for name in Clips.__dataclass_fields__} | {"labels": labels, "folds": labels}
print(silhouette(embeddings, Clips(**fields)))
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_policies_are_measured_and_compared(toy_terminal):
    here = toy_terminal.directory
    shorter = "--repeats 1 --seconds 5 --policy pcm16 --policy device-only"
    if os.geteuid() != 0:
        shorter += " --network relay"
    toy_terminal.types("ssc bench run lte wifi --encoder encoder.pt --audio recordings/ -o bench/", shorter)
    page = (here / "bench" / "bench.md").read_text()
    assert "device-only" in page
    (here / "before").mkdir()
    shutil.copy(here / "bench" / "bench.json", here / "before")
    toy_terminal.types("ssc bench compare before/bench.json bench/bench.json")


def test_embeddings_are_scored(environment):
    assert float(environment.python(SCORES)) > 0.9
