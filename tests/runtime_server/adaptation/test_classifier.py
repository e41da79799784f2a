import msgspec
import numpy as np
import pytest
import torch
from toys import Tiny

from runtime_edge.errors import UsageError
from runtime_server.adaptation.classifier import Classifier, norm_layers


def test_its_softmax_is_the_heads_scores(classifier, softmax_head, windows):
    with torch.no_grad():
        scores = classifier()(windows).softmax(1).numpy()
        embeddings = Tiny()(windows).numpy()
    np.testing.assert_allclose(scores, softmax_head.scores(embeddings), atol=1e-5)


def test_the_norms_alone_can_be_trained(classifier):
    norms = ["stem.1", "down.1", "residual.bn"]
    made = classifier()
    assert norm_layers(made.encoder) == norms
    assert set(made.adaptable()) == {f"{name}.{part}" for name in norms for part in ("weight", "bias")}
    others = {name for name, value in made.encoder.named_parameters() if not value.requires_grad}
    assert {"head.weight", "stem.0.weight"} <= others


def test_a_head_of_labels_that_exclude_nothing_is_refused(tiny_encoder, softmax_head):
    several = msgspec.structs.replace(softmax_head, scores_by="sigmoid")
    with pytest.raises(UsageError, match="adaptation needs a softmax head"):
        Classifier(tiny_encoder.graph.module, several)
