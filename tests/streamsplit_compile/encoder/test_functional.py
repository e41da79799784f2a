import pytest
import torch
from shapes import WINDOW, FilledConstant, Inplace, Linear, ReadThroughView, WriteThroughView, make
from torch import nn

from runtime_edge.errors import UsageError
from streamsplit_compile.encoder.functional import reads_through_views
from streamsplit_compile.encoder.graph import export_encoder


def waveform():
    return torch.randn(3, WINDOW, generator=torch.Generator().manual_seed(1))


def mutable(encoder):
    schemas = [getattr(node.target, "_schema", None) for node in encoder.module.graph.nodes]
    return [schema.name for schema in schemas if schema is not None and schema.is_mutable]


@pytest.mark.parametrize("kind", [Inplace, WriteThroughView, ReadThroughView, FilledConstant])
def test_in_place_ops_become_functional_and_the_function_stays_the_same(kind):
    module = make(kind)
    encoder = export_encoder(module, WINDOW)
    assert mutable(encoder) == []
    assert torch.equal(encoder.module(waveform()), module(waveform()))


def test_the_functional_graph_leaves_its_input_alone():
    class Scaled(Linear):
        def forward(self, x):
            return super().forward(x.mul_(3.0))

    encoder, given = export_encoder(Scaled(), WINDOW), waveform()
    encoder.module(given)
    assert torch.equal(given, waveform())


def test_names_stay_where_no_view_is_involved():
    encoder = export_encoder(make(Inplace), WINDOW)
    names = [candidate.name for candidate in encoder.candidates]
    assert names[:3] == ["waveform", "first", "relu"]
    assert names[-1] == "second"


def graph(kind):
    return torch.export.export(make(kind), (torch.zeros(1, WINDOW),)).graph


@pytest.mark.parametrize(
    ("kind", "through_views"),
    [(Linear, False), (Inplace, False), (WriteThroughView, True), (ReadThroughView, True), (FilledConstant, True)],
)
def test_only_what_is_read_through_a_view_needs_torchs_own_way(kind, through_views):
    assert reads_through_views(graph(kind)) is through_views


@pytest.mark.parametrize("through", [lambda y: y, lambda y: y.view(-1, 2, 8), lambda y: y[:, :4]])
def test_dropout_that_passes_its_input_on_is_refused_by_node(through):
    class Dropped(Linear):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x):
            y = self.first(x)
            through(self.dropout(y)).add_(1.0)
            return self.second(y)

    with pytest.raises(UsageError, match=r"node add_ \(.*\): .* is used after it was changed in place"):
        export_encoder(Dropped(), WINDOW)


@pytest.mark.parametrize("first", [True, False])
def test_an_encoder_that_keeps_state_is_refused_by_buffer(first):
    class Counting(Linear):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            if first:
                self.seen.add_(1)
            y = super().forward(x) * self.seen
            if not first:
                self.seen.add_(1)
            return y

    with pytest.raises(
        UsageError, match=r"node add_ \(test_functional\.py, line \d+: .*\): changes seen at every call"
    ):
        export_encoder(Counting(), WINDOW)


def test_a_counter_that_nothing_reads_does_no_harm():
    class Counting(Linear):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen.add_(1)
            return super().forward(x)

    torch.manual_seed(0)
    module = Counting().eval()
    assert torch.equal(export_encoder(module, WINDOW).module(waveform()), module(waveform()))
