import msgspec
import numpy as np
import pytest
import torch
from example_records import head
from toys import Tiny

from runtime_server.adaptation.classifier import Classifier
from runtime_server.suffix.generations import copy_module

LABELS = ("a", "b", "c", "d")


@pytest.fixture
def softmax_head(windows):
    """Its labels are all heard among the windows: the embeddings of random weights are much alike."""
    with torch.no_grad():
        embeddings = Tiny()(windows).numpy()
    weights = 24 * np.random.default_rng(0).standard_normal((len(LABELS), 6))
    bias = -weights @ embeddings.mean(0)
    return msgspec.structs.replace(
        head("tiny"), labels=LABELS, weights=weights.astype("<f4").tobytes(), bias=bias.astype("<f4").tobytes(),
        thresholds=(0.5,) * len(LABELS), scores_by="softmax", temperature=0.5, validation=None, background=None,
        min_energy=None, exit_temperatures={},
    )  # fmt: skip


@pytest.fixture
def classifier(tiny_encoder, softmax_head):
    """`classifier()` makes one of its own."""
    return lambda: Classifier(copy_module(tiny_encoder.graph.module), softmax_head)


@pytest.fixture
def windows():
    return torch.from_numpy(np.random.default_rng(1).standard_normal((32, 1024)).astype(np.float32))
