import msgspec
import numpy as np
import pytest
import torch
from example_records import head
from toys import Tiny

from runtime_server.adaptation.classifier import Classifier
from runtime_server.adaptation.recipient import Recipient
from runtime_server.suffix.generations import Generations, copy_module
from runtime_server.suffix.larger_encoder import LargerEncoder, whole
from streamsplit_compile.encoder.encoders import load_encoder

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


@pytest.fixture(scope="session")
def larger(tiny_encoder, tmp_path_factory):
    """Another encoder for the same windows, mapped to the embeddings of the first."""
    path = tmp_path_factory.mktemp("larger") / "larger.pt"
    torch.save(Tiny(7).state_dict(), path)
    graph = load_encoder(path, "toys:Tiny").graph
    heard = torch.from_numpy(np.random.default_rng(2).standard_normal((200, 1024)).astype(np.float32))
    return LargerEncoder(whole(graph), heard, graph)


@pytest.fixture
def taught(tiny_encoder, adaptable_bundle, larger):
    """The same, with a larger encoder."""
    known = Generations(tiny_encoder.graph, larger=larger)
    known.add(adaptable_bundle, tiny_encoder.tensors)
    return known


@pytest.fixture
def recipient(softmax_head, adaptable_bundle):
    head = msgspec.structs.replace(softmax_head, encoder=adaptable_bundle.manifest.info.encoder.id)
    return Recipient("rpi4", "pi-1", head)
