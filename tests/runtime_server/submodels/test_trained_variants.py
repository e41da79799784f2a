import numpy as np
import pytest
import torch

from runtime_server.submodels.trained_variants import placed, plan, tensors_of, train_only, values_to_send, variant
from streamsplit_compile.modules.observation import observe
from streamsplit_compile.modules.slicing import slice_encoder

KEPT = {"features.1": [*range(8), *range(16, 36)], "features.2": list(range(8, 16))}
TRAINED = {"features.1": (2, 4), "features.2": (1,)}


@pytest.fixture
def planned(encoder, windows):
    return plan(encoder, KEPT, TRAINED, observe(encoder, windows[:32]))


def test_a_variant_is_the_sub_model_with_channels_that_stand_in(encoder, windows, planned):
    expected = slice_encoder(encoder, KEPT, observe(encoder, windows[:32]))
    torch.testing.assert_close(variant(encoder, planned)(windows), expected(windows), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_the_encoder_has_learnt_reaches_the_variant_and_the_correction_stays(encoder, planned):
    before = variant(encoder, planned).state_dict()
    encoder.features[1].block[3][0].weight[:, 20] += 1.0
    after = variant(encoder, planned).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"features.1.block.3.0.weight"}
    difference = (after["features.1.block.3.0.weight"] - before["features.1.block.3.0.weight"]).abs().sum((0, 2, 3))
    assert difference.nonzero()[:, 0].tolist() == [8 + 20 - 16]


def test_only_groups_that_train_change(encoder, windows, planned):
    small = variant(encoder, planned)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    optimiser = torch.optim.Adam(train_only(small, encoder, planned), lr=0.1)
    small(windows[:8])[:, 0].sum().backward()
    optimiser.step()
    allowed = {"features.1": {*range(8, 16), *range(24, 28)}, "features.2": set(range(8))}
    for layer in encoder.inner_layers():
        for name, axis in tensors_of(encoder, layer):
            value, old = small.state_dict()[name].movedim(axis, 0), before.pop(name).movedim(axis, 0)
            changed = (value != old).reshape(len(value), -1).any(1)
            assert set(changed.nonzero()[:, 0].tolist()) <= allowed[layer.name]
            if name.endswith("weight"):
                assert changed.any(), name
    assert all(torch.equal(small.state_dict()[name], value) for name, value in before.items())


def test_values_stand_where_they_belong(encoder, planned):
    small = variant(encoder, planned)
    found = placed(small.state_dict(), encoder, KEPT)
    weight, own = found["features.1.block.3.0.weight"], small.features[1].block[3][0].weight
    assert torch.equal(weight[:, 16:36], own[:, 8:28])
    assert torch.isnan(weight[:, 8:16]).all()
    assert torch.isnan(found["features.2.conv1.weight"][:8]).all()
    total = sum(value.numel() for value in small.state_dict().values() if value.is_floating_point())
    assert values_to_send(found, []) == total


def test_a_skipped_layer_has_no_values(encoder):
    small = slice_encoder(encoder, {"features.2": []})
    found = placed(small.state_dict(), encoder, {"features.2": []})
    assert all(np.isnan(value.numpy()).all() for name, value in found.items() if name.startswith("features.2."))


def test_only_values_that_a_device_holds_in_none_of_its_sub_models_are_sent(encoder):
    new = placed(encoder.state_dict(), encoder, {})
    one, other = ({name: value.clone() for name, value in new.items()} for _ in range(2))
    assert values_to_send(new, [one]) == 0
    one["projection.weight"][:3] += 1
    other["projection.weight"][2:] += 1
    assert values_to_send(new, [one]) == 3 * 16
    assert values_to_send(new, [one, other]) == 16
