import pytest
import torch
from torch import nn
from torch.nn import functional

from runtime_server.submodels.enhancing import Lessons, enhance, task_masks, top, train_selector
from runtime_server.submodels.selector import Selector
from streamsplit_compile.modules.layers import channels_in
from streamsplit_compile.modules.ranking import embeddings_of
from streamsplit_compile.modules.slicing import recalibrate, slice_encoder

COUNTS = {"features.1": 3, "features.2": 1}


@pytest.fixture
def lessons(windows):
    """Two kinds of windows, loud and quiet, which the responsibilities tell apart."""
    labels = torch.arange(48) % 2
    return Lessons(windows * (1 + 9 * labels[:, None]), labels, functional.one_hot(labels, 2).float())


@pytest.fixture
def selector():
    return Selector(2, {"features.1": torch.ones(5), "features.2": torch.ones(2)})


@pytest.fixture
def head():
    torch.manual_seed(0)
    return nn.Linear(12, 2)


def tasks(lessons):
    return [(lessons.labels == label).nonzero()[:, 0] for label in (0, 1)]


def test_the_largest_gates_are_on_and_all_have_the_gradient_of_the_soft_gate():
    gates = torch.tensor([[0.1, 0.5, 0.4]], requires_grad=True)
    found = top(gates, 2)
    assert found.tolist() == [[0.0, 1.0, 1.0]]
    found.sum().backward()
    assert gates.grad.tolist() == [[3.0, 3.0, 3.0]]


@pytest.mark.integration
def test_the_selector_learns_and_the_encoder_stays(encoder, head, selector, lessons):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.requires_grad_(False)
    train_selector(encoder, lambda z: 16 * head(z), selector, lessons, COUNTS, 5)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not encoder.training
    gates = selector(torch.eye(2))["features.1"].detach()
    assert float((gates[0] - gates[1]).abs().max()) > 1e-3


def test_sub_tasks_have_so_many_groups_and_no_group_is_forgotten(selector, lessons):
    found = task_masks(selector, lessons, tasks(lessons), COUNTS)
    assert found["features.1"].sum(1).tolist() == [3, 3]
    assert found["features.2"].sum(0).tolist() == [1, 1]
    assert found["features.1"].sum(0).min() >= 1


@pytest.mark.integration
def test_sub_models_do_better_on_their_sub_tasks_and_gates_go_where_masks_are(encoder, head, selector, lessons):
    def loss(masks):
        each = []
        for number, task in enumerate(tasks(lessons)):
            kept = {
                layer.name: channels_in(layer, masks[layer.name][number].nonzero()[:, 0].tolist())
                for layer in encoder.inner_layers()
            }
            small = slice_encoder(encoder, kept)
            recalibrate(small, lessons.windows[task])
            logits = 16 * head(embeddings_of(small, lessons.windows[task]).clone())
            each.append(functional.cross_entropy(logits, lessons.labels[task]).detach())
        return float(torch.stack(each).mean())

    before = loss(task_masks(selector, lessons, tasks(lessons), COUNTS))
    masks = enhance(encoder, head, lambda z: 16 * head(z), selector, lessons, tasks(lessons), COUNTS, 30)
    assert loss(masks) < 0.7 * before
    gates = selector(torch.eye(2))["features.1"].detach()
    assert float((gates * masks["features.1"]).sum(1).min()) > 0.7


def test_the_same_seed_gives_the_same_selector(encoder, head, lessons):
    found = []
    for _ in range(2):
        selector = Selector(2, {"features.1": torch.ones(5), "features.2": torch.ones(2)})
        train_selector(encoder, head, selector, lessons, COUNTS, 3, seed=4)
        found.append(selector.matrices[0].detach())
    assert torch.equal(*found)
