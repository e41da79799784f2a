import numpy as np
import pytest
import torch
from shapes import GOOD, WINDOW, Convolutional, make
from torch import nn
from torch.nn.utils import parametrizations

from runtime_edge.errors import FormatError, UsageError
from streamsplit_compile.encoder.graph import export_encoder
from streamsplit_compile.encoder.segment import extract
from streamsplit_compile.lowering.fx_folding import fold
from streamsplit_compile.lowering.weight_program import ProgramStep, separate


class Transformer(nn.Module):
    """A norm that feeds three layers and a residual, and one that feeds a layer without bias."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.norm2 = nn.LayerNorm(8, bias=False)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(8, 8, bias=False)

    def forward(self, x):
        frames = self.norm(x.view(-1, 8, 8))
        weights = torch.softmax(self.query(frames) @ self.key(frames).transpose(1, 2), dim=2)
        return self.last(self.dropout(self.norm2(frames + weights @ self.value(frames)))).mean(1)


class Gate(nn.Module):
    """Squeeze-and-excitation's hard sigmoid, behind a layer, behind a norm and behind neither."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 1)
        self.normed, self.norm = nn.Conv1d(8, 8, 3, bias=False), nn.BatchNorm1d(8)
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        y = nn.functional.hardsigmoid(self.conv(x.view(-1, 8, 8)))
        y = nn.functional.hardsigmoid(self.norm(self.normed(y)))
        return nn.functional.hardsigmoid(self.linear(y.mean(2)) * y.amax(2))


class WorkedOut(nn.Module):
    """Weights that are worked out from parameters before they meet data."""

    def __init__(self):
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv1d(8, 8, 3, padding=1), dim=2)
        self.table = nn.Parameter(torch.randn(15, 8))
        self.register_buffer("where", (torch.arange(8)[:, None] - torch.arange(8) + 7), persistent=False)
        self.scale = nn.Parameter(torch.randn(()))

    def forward(self, x):
        bias = self.table[self.where].permute(2, 0, 1).mean(0)
        return (self.conv(x.view(-1, 8, 8)) + bias * self.scale.exp()).mean(2)


def prepared(kind):
    module = make(kind)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator))
    return module


def segment_of(module):
    encoder = export_encoder(module, WINDOW)
    return extract(encoder, encoder.candidates[0], encoder.candidates[-1])


def operators(segment):
    return {str(node.target).removeprefix("aten.") for node in segment.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("kind", [*GOOD, Transformer, Gate, WorkedOut], ids=lambda kind: kind.__name__)
def test_a_folded_segment_and_its_program_are_the_module_for_any_weights(kind):
    body, program = separate(fold(segment_of(make(kind))), make(kind).state_dict().keys())
    other = prepared(kind)
    results = program.run({name: value.detach().numpy() for name, value in other.state_dict().items()})
    for index, array in enumerate(results):
        assert body.get_buffer(f"weight_{index}").shape == array.shape
        body.register_buffer(f"weight_{index}", torch.from_numpy(array))
    window = torch.randn(1, WINDOW, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(body(window.clone()), other(window.clone()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "gone"),
    [(Convolutional, "batch_norm.default"), (Transformer, "dropout.default"), (WorkedOut, "index.Tensor")],
)
def test_what_needs_no_data_is_gone_from_the_body(kind, gone):
    segment = segment_of(make(kind))
    body, _ = separate(fold(segment), make(kind).state_dict().keys())
    assert gone in operators(segment)
    assert gone not in operators(body)
    # No weight is touched by arithmetic any more: each is read where it is used.
    assert all(not node.all_input_nodes for node in body.graph.nodes if node.op == "get_attr")


def test_every_layer_behind_a_norm_takes_its_affine_part():
    folded = fold(segment_of(make(Transformer)))
    norms = [node for node in folded.graph.nodes if node.target is torch.ops.aten.layer_norm.default]
    assert [norm.args[2:4] for norm in norms] == [(None, None), (None, None)]
    layers = [node for node in folded.graph.nodes if node.target is torch.ops.aten.linear.default]
    assert [layer.args[0] in norms for layer in layers] == [True] * 4


def test_folding_leaves_the_segment_alone():
    segment = segment_of(make(Convolutional))
    before = [str(node.format_node()) for node in segment.graph.nodes]
    fold(segment)
    assert [str(node.format_node()) for node in segment.graph.nodes] == before


@pytest.mark.parametrize(
    "step",
    [
        ProgramStep("rm.rf", [], {}),
        ProgramStep("add_.Tensor", [{"value": 0}, 1], {}),
        ProgramStep("add.Tensor", [{"value": 9}], {}),
    ],
)
def test_steps_that_are_no_pure_operation_are_refused(step):
    _, program = separate(fold(segment_of(make(Convolutional))), make(Convolutional).state_dict().keys())
    program.steps.insert(0, step)
    with pytest.raises(FormatError, match="compile it again"):
        program.run({name: value.detach().numpy() for name, value in make(Convolutional).state_dict().items()})


def test_custom_operations_on_weights_are_refused():
    with torch.library._scoped_library("toy", "FRAGMENT") as library:
        library.define("halve(Tensor x) -> Tensor")
        library.impl("halve", lambda x: x / 2, "CompositeExplicitAutograd")
        library.impl("halve", torch.empty_like, "Meta")

        class Custom(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.randn(8, WINDOW))

            def forward(self, x):
                return nn.functional.linear(x, torch.ops.toy.halve(self.weight))

        with pytest.raises(UsageError, match="not an ATen operation"):
            separate(fold(segment_of(make(Custom))), ["weight"])


def test_the_arrays_of_a_program_are_float32_and_in_order():
    _, program = separate(fold(segment_of(make(WorkedOut))), make(WorkedOut).state_dict().keys())
    results = program.run({name: value.detach().numpy() for name, value in make(WorkedOut).state_dict().items()})
    assert {result.dtype for result in results} == {np.dtype(np.float32)}
    assert [parameter.name for parameter in program.parameters][-1] in make(WorkedOut).state_dict()
