"""InfoNCE with the batch's and virtual negatives, against numpy."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from runtime_server.training.losses.objectives import DEFAULT, OBJECTIVES
from runtime_server.training.losses.objectives.interface import Views
from runtime_server.training.losses.objectives.virtual_negatives import VirtualNegatives


def test_neighbours_are_positives_and_virtual_negatives_are_candidates():
    generator = torch.Generator().manual_seed(0)
    anchors, positives, virtual = (
        normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)
        for shape in ((5, 4), (5, 4), (5, 7, 4))
    )
    matches, ignore = torch.zeros(5, 5, dtype=torch.bool), torch.zeros(5, 5, dtype=torch.bool)
    matches[0, 1] = ignore[0, 1] = ignore[0, 2] = True
    z, keys, samples = anchors.numpy(), positives.numpy(), virtual.numpy()
    total = 0.0
    for i in range(5):
        candidates = [keys[j] for j in range(5) if (i, j) != (0, 2)] + list(samples[i])
        partition = np.log(np.sum(np.exp(np.array(candidates) @ z[i] / 0.2)))
        own = [j for j in range(5) if j == i or matches[i, j]]
        total += np.mean([partition - keys[j] @ z[i] / 0.2 for j in own]) - np.log(len(own))
    objective = VirtualNegatives((), width=4, temperature=0.2, seed=0)
    found = objective(Views(anchors, positives, virtual, ignore, matches))
    assert found.item() == pytest.approx(total / 5)


def test_alone_wants_virtual_negatives_and_is_the_default_otherwise():
    made = {name: make((), width=4, temperature=0.1, seed=0) for name, make in OBJECTIVES.items()}
    assert [name for name, objective in made.items() if objective.virtual_negatives] == ["virtual-negatives"]
    views = Views(*(normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1)))
    assert made["virtual-negatives"](views) == made[DEFAULT](views)
