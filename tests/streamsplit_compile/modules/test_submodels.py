import pytest
import torch

from streamsplit_compile.modules.derivation import Cost, Limits
from streamsplit_compile.modules.ranking import embeddings_of, study
from streamsplit_compile.modules.submodels import derive, submodel

FIXED = Cost(0.0, 10.0, 5.0)


def costs_of(known):
    return {
        one.layer.name: [Cost(float(count), 4.0 * count, float(count)) for count in range(len(one.importance) + 1)]
        for one in known.layers
    }


def test_without_a_limit_all_stays_and_the_embedding_with_it(encoder, windows):
    known = study(encoder, windows)
    found = derive(known, FIXED, costs_of(known), Limits())
    assert found.kept == {one.layer.name: list(range(one.layer.channels)) for one in known.layers}
    assert found.loss == 0
    assert found.cost == Cost(10.0, 50.0, 5.0)


def test_a_tight_budget_keeps_the_best_groups_and_what_cannot_be_skipped(encoder, windows):
    known = study(encoder, windows)
    found = derive(known, FIXED, costs_of(known), Limits(ms=5.0))
    assert found.cost.ms <= 5
    assert found.kept["features.2"]
    assert all(found.kept[one.layer.name] == one.best(len(found.kept[one.layer.name]) // 8) for one in known.layers)
    small = submodel(encoder, known, found.kept, windows)
    assert [layer.channels for layer in small.inner_layers()] == [len(own) for own in found.kept.values() if own]
    assert torch.isfinite(embeddings_of(small, windows)).all()
    least = derive(known, FIXED, costs_of(known), Limits(ms=1.0))
    assert {name: len(channels) for name, channels in least.kept.items()} == {
        "features.1": 0,
        "features.2": 8,
        "features.4": 0,
    }
    assert least.loss == pytest.approx(
        sum(one.losses[count] for one, count in zip(known.layers, (0, 1, 0), strict=True))
    )
