import pytest
import torch
from shapes import WINDOW, Linear, make
from torch import nn

from runtime_edge.errors import UsageError
from streamsplit_compile.encoder.encoders import from_module
from streamsplit_compile.encoder.graph import export_encoder
from streamsplit_compile.encoder.tracing import fixed_sizes

pytestmark = pytest.mark.integration


class Padded(Linear):
    """A padding worked out from integers in buffers, and a choice by it, as codecs write it."""

    persistent = False

    def __init__(self):
        super().__init__()
        self.register_buffer("size", torch.tensor(6), persistent=self.persistent)
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, x):
        extra = torch.ceil(x.shape[1] / self.size).to(torch.int64) * self.size - x.shape[1]
        if extra <= 2:
            x = nn.functional.pad(x, (0, extra)) * self.scale
        return super().forward(x[:, :WINDOW])


class Changeable(Padded):
    """New weights may bring another size."""

    persistent = True


def test_sizes_in_buffers_are_constants_of_the_graph():
    module = make(Padded)
    encoder = from_module("net", {}, module, 1000)
    window = torch.rand(3, WINDOW) * 2 - 1
    torch.testing.assert_close(encoder.graph.module(window), module(window))
    assert encoder.graph.dynamic_batch
    assert encoder.tensors.keys() == module.state_dict().keys()


def test_the_module_is_afterwards_as_it_was():
    module = make(Padded)
    size, kind = module.size, type(module)
    with fixed_sizes(module):
        assert "size" not in dict(module.named_buffers())
        assert module.size.item() == 6
    assert type(module) is kind
    assert module.size is size
    assert dict(module.named_buffers()).keys() == {"size", "scale"}
    assert "size" not in module.state_dict()


def test_a_size_that_new_weights_may_change_is_refused():
    with pytest.raises(UsageError, match="if extra <= 2:: it computes differently depending on values of tensors"):
        export_encoder(make(Changeable), WINDOW)
