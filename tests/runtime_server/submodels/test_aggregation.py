import torch

from runtime_server.submodels.aggregation import Contribution, aggregate
from runtime_server.submodels.trained_variants import plan, variant
from streamsplit_compile.modules.observation import observe

FIRST = {"features.1": list(range(24)), "features.2": list(range(16))}
SECOND = {"features.1": [*range(8, 16), *range(24, 36)], "features.2": list(range(8))}
IMPORTANCE = (
    {"features.1": torch.tensor([0.1, 0.6, 0.1, 0.1, 0.1]), "features.2": torch.tensor([0.5, 0.5])},
    {"features.1": torch.full((5,), 0.2), "features.2": torch.tensor([0.9, 0.1])},
)


def trained(encoder, observed, kept, groups, importance, moved):
    """A sub-model all of whose parameters have moved by so much."""
    planned = plan(encoder, kept, groups, observed)
    small = variant(encoder, planned)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter += moved
    return Contribution(small, planned, importance)


def test_a_group_moves_by_the_weighted_mean_of_where_it_trained(encoder, windows):
    before, observed = {n: p.detach().clone() for n, p in encoder.named_parameters()}, observe(encoder, windows[:32])
    aggregate(encoder, [
        trained(encoder, observed, FIRST, {"features.1": (0, 1), "features.2": ()}, IMPORTANCE[0], 1.0),
        trained(encoder, observed, SECOND, {"features.1": (1, 4), "features.2": (0,)}, IMPORTANCE[1], 2.0),
    ])  # fmt: skip
    moved = {name: value.detach() - before[name] for name, value in encoder.named_parameters()}
    both = (0.6 * 1 + 0.2 * 2) / 0.8
    expected = torch.tensor([1.0] * 8 + [both] * 8 + [0.0] * 16 + [2.0] * 4)
    for name in ("block.0.0.weight", "block.1.0.weight", "block.1.1.bias", "block.2.fc2.weight", "block.2.fc2.bias"):
        found = moved[f"features.1.{name}"].reshape(36, -1).mean(1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for name in ("block.2.fc1.weight", "block.3.0.weight"):
        torch.testing.assert_close(moved[f"features.1.{name}"].mean((0, 2, 3)), expected, rtol=1e-4, atol=1e-5)
    half = torch.tensor([2.0] * 8 + [0.0] * 8)
    torch.testing.assert_close(moved["features.2.conv2.weight"].mean((0, 2, 3)), half, rtol=1e-4, atol=1e-5)
    for name in ("projection.weight", "features.0.0.weight", "features.2.bn2.weight", "features.1.block.2.fc1.bias"):
        assert not moved[name].any(), name


def test_sub_models_that_have_not_moved_change_nothing(encoder, windows):
    before, observed = {n: p.detach().clone() for n, p in encoder.named_parameters()}, observe(encoder, windows[:32])
    groups = {"features.1": (1,), "features.2": (0,)}
    aggregate(encoder, [trained(encoder, observed, FIRST, groups, IMPORTANCE[0], 0.0)])
    for name, value in encoder.named_parameters():
        torch.testing.assert_close(value.detach(), before[name], rtol=1e-5, atol=1e-6)
