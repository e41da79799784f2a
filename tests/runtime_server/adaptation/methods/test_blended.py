"""Statistics that are blended into scale and shift do what blended statistics do."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from runtime_server.adaptation.methods.blended import SHARE, Blended

EPSILON = 1e-3


class Resting:
    def update(self, windows):
        pass


class Norms(nn.Module):
    """Two convolutions with batch norms that keep their statistics."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv1d(1, 4, 5), nn.Conv1d(4, 3, 3)
        self.norms = nn.ModuleList([nn.BatchNorm1d(channels, EPSILON) for channels in (4, 3)])
        for norm in self.norms:
            for value in (norm.weight, norm.running_var):
                value.data.uniform_(0.5, 2.0)
            for value in (norm.bias, norm.running_mean):
                value.data.normal_()
        self.eval()

    def forward(self, windows):
        heard = windows[:, None]
        for convolution, norm in zip((self.first, self.second), self.norms, strict=True):
            heard = functional.relu(self.norm(norm, convolution(heard)))
        return heard.mean(2)

    def norm(self, layer, heard):
        return layer(heard)

    def adaptable(self):
        return {name: value for name, value in self.named_parameters() if name.startswith("norms")}


class Reference(Norms):
    """Blends its running statistics with those of each batch, when told to, before it uses them."""

    blending = False

    def norm(self, layer, heard):
        if self.blending:
            layer.running_mean.lerp_(heard.mean((0, 2)), SHARE)
            layer.running_var.lerp_(heard.var((0, 2), correction=0), SHARE)
        return layer(heard)


@pytest.fixture
def batches():
    random = torch.Generator().manual_seed(3)
    return [3.0 * torch.randn(32, 64, generator=random) + 1.0 for _ in range(3)]


def test_scale_and_shift_do_what_blended_statistics_do(batches):
    model, reference = Norms(), Reference()
    blended = Blended(Resting(), model)
    compiled = [norm.running_mean.clone() for norm in model.norms]
    for batch in batches:
        blended.update(batch)
        with torch.no_grad():
            reference.blending = True
            reference(batch)
            reference.blending = False
            torch.testing.assert_close(model(batches[0]), reference(batches[0]), rtol=1e-4, atol=1e-5)
    for norm, before in zip(model.norms, compiled, strict=True):
        torch.testing.assert_close(norm.running_mean, before, rtol=0, atol=0)


def test_what_the_method_learns_stays(batches):
    """A method that doubles the scales of the first layer: with blended statistics that is still a doubled scale."""

    class Doubling:
        def update(self, windows):
            with torch.no_grad():
                model.norms[0].weight.mul_(2.0)
                model.norms[0].bias.copy_(2.0 * model.norms[0].bias)

    model, reference = Norms(), Reference()
    blended = Blended(Doubling(), model)
    for batch in batches[:2]:
        blended.update(batch)
        with torch.no_grad():
            reference.blending = True
            reference(batch)
            reference.norms[0].weight.mul_(2.0)
            reference.norms[0].bias.mul_(2.0)
            reference.blending = False
            torch.testing.assert_close(model(batch), reference(batch), rtol=1e-4, atol=1e-5)


def test_layers_that_are_put_back_start_with_the_compiled_statistics(batches):
    model, fresh = Norms(), Norms()
    begun = copy.deepcopy(model.state_dict())
    blended = Blended(Resting(), model)
    blended.update(batches[0])
    model.load_state_dict(begun)
    blended.update(batches[1])
    Blended(Resting(), fresh).update(batches[1])
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)
