import numpy as np
import pytest
import torch
from torch import nn

from runtime_server.submodels.device_groups import DeviceGroups
from runtime_server.submodels.trained_variants import placed, plan, values_to_send
from streamsplit_compile.modules.layers import channels_in, groups_of
from streamsplit_compile.modules.observation import observe
from streamsplit_models.mobilenet import mobilenet_v3_small
from tools.module_arms import Averaged, Fixed, Local, Share, SubModels

pytestmark = pytest.mark.integration


@pytest.fixture
def encoder():
    front_end = {"n_mels": 32, "window_samples": 4000, "hop_samples": 2000}
    return mobilenet_v3_small(width=0.1, embedding_dim=8, front_end=front_end)


@pytest.fixture
def head():
    torch.manual_seed(0)
    return nn.Linear(8, 3)


@pytest.fixture
def shares():
    """Two devices, one of each component."""
    random = torch.Generator().manual_seed(1)
    windows = 0.1 * torch.randn(24, 4000, generator=random)
    labels, heard = torch.arange(24) % 3, torch.eye(2).repeat_interleave(12, 0)
    return [Share(windows[own], labels[own], torch.ones(12), heard[own]) for own in (slice(12), slice(12, 24))]


def half(encoder, windows):
    """A plan that keeps the first half of each layer's groups and trains the first one."""
    kept = {one.name: channels_in(one, range(-(-len(groups_of(one)) // 2))) for one in encoder.inner_layers()}
    return plan(encoder, kept, {one.name: (0,) for one in encoder.inner_layers()}, observe(encoder, windows))


def test_without_adaptation_nothing_is_sent_and_with_heads_only_heads(encoder, head, shares):
    assert Fixed(encoder, head, False).step(shares, 0).values == [0, 0]
    ran = Fixed(encoder, head, True).step(shares, 0)
    assert ran.values == [27, 27]
    assert not torch.equal(ran.heads[0].weight, ran.heads[1].weight)


def test_averaging_one_device_is_training_it_alone(encoder, head, shares):
    alone, averaged = Local(encoder, head, 1).step(shares[:1], 5), Averaged(encoder, head).step(shares[:1], 5)
    for name, value in alone.modules[0].state_dict().items():
        torch.testing.assert_close(averaged.modules[0].state_dict()[name], value)
    assert alone.values == averaged.values


def test_sub_models_train_their_groups_and_send_what_changed(encoder, head, shares):
    groups = DeviceGroups(np.array([[1.0, 0.0], [0.0, 1.0]]))
    plans = [half(encoder, shares[0].windows)] * 2
    before = placed(encoder.state_dict(), encoder, {})
    arm = SubModels(encoder.requires_grad_(False), head, groups, plans, None, shares[0].windows)
    ran = arm.step(shares, 0)
    after = placed(encoder.state_dict(), encoder, {})
    moved = {name for name in before if not torch.equal(before[name], after[name]) and "running" not in name}
    inner = {f"{layer.name}." for layer in encoder.inner_layers()}
    assert moved
    assert all(any(name.startswith(own) for own in inner) for name in moved)
    assert ran.modules[0] is not ran.modules[1]
    whole = values_to_send(placed(ran.modules[0].state_dict(), encoder, plans[0].kept), [])
    assert 27 < min(ran.values) <= max(ran.values) < whole


def test_sub_models_that_do_not_adapt_leave_the_encoder_alone(encoder, head, shares):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    plans = [half(encoder, shares[0].windows)]
    arm = SubModels(encoder, head, DeviceGroups(np.array([[0.5, 0.5]])), plans, None, shares[0].windows, adapts=False)
    ran = arm.step(shares, 0)
    assert ran.modules[0] is ran.modules[1]
    assert ran.values == [0, 0]
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
