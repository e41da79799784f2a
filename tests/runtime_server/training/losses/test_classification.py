import pytest
import torch
from sklearn.metrics import log_loss

from runtime_server.training.losses.classification import LinearHead, classification_loss


@pytest.fixture
def head():
    torch.manual_seed(0)
    return LinearHead(5, 3)


def test_equals_scikit_learns_log_loss_over_labelled_windows(head):
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, -1, 1, 0, -1, 2])
    known = labels >= 0
    scores = (z @ head.weight.T + head.bias).softmax(1)[known].detach().double()
    expected = log_loss(labels[known], scores / scores.sum(1, keepdim=True), labels=[0, 1, 2])
    assert classification_loss(head, z, labels).item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_labels_is_zero_with_zero_gradient(head):
    z = torch.ones(2, 5, requires_grad=True)
    loss = classification_loss(head, z, torch.tensor([-1, -1]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z))
