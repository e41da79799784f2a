import pytest
import torch
from shapes import WINDOW, Linear, make
from torch import nn

from runtime_edge.errors import UsageError
from streamsplit_compile.encoder.graph import export_encoder
from streamsplit_compile.encoder.segment import extract
from streamsplit_compile.lowering.artifact_formats import lower
from streamsplit_compile.lowering.exportable import exportable

pytestmark = pytest.mark.integration


class Clamped(Linear):
    """An integer and a float bound, as SincNet clamps its frequencies."""

    def forward(self, x):
        y = torch.clamp(self.first(x), 0, 0.25)
        return self.second(y.clamp(max=0.2, min=0))


class Sentence(nn.Module):
    """Attention whose result is viewed in the layout that it has in one piece."""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x):
        frames = x.view(-1, 8, 8)
        query, key, value = (part.view(-1, 8, 2, 4).transpose(1, 2) for part in self.query(frames).chunk(3, 2))
        found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=torch.zeros(8, 8))
        return self.out(found.transpose(1, 2).reshape(-1, 8, 8)).mean(1)


def whole(module):
    graph = export_encoder(module, WINDOW)
    return graph, extract(graph, graph.candidates[0], graph.candidates[-1])


@pytest.mark.parametrize("kind", [Clamped, Sentence], ids=lambda kind: kind.__name__)
def test_what_exporters_stumble_over_is_written_otherwise(kind):
    import onnxruntime

    graph, segment = whole(make(kind))
    tensors = {name: value.detach().numpy() for name, value in graph.module.state_dict().items()}
    lowered = lower("onnx", segment, (1, WINDOW), tensors)
    window = torch.rand(1, WINDOW, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(exportable(segment)(window), segment(window))
    session = onnxruntime.InferenceSession(lowered.model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": window.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), segment(window), atol=1e-5, rtol=0)


def test_what_nothing_stands_in_the_way_of_stays_as_it_is():
    _, segment = whole(make(Linear))
    assert exportable(segment) is segment


class Unsayable(Linear):
    def forward(self, x):
        y = torch.special.bessel_j0(self.first(x))
        return self.second(y)


class Distant(Linear):
    def forward(self, x):
        y = self.first(x)[:, None]
        return self.second(torch.cdist(y, y.roll(1, 2)).expand(-1, 1, 16)[:, 0])


def test_an_operator_is_named_with_the_line_that_is_broken_down_into_it():
    graph, segment = whole(make(Distant))
    tensors = {name: value.detach().numpy() for name, value in graph.module.state_dict().items()}
    with pytest.raises(
        UsageError,
        match=r"node cdist \(test_exportable.py, line \d+: return .*\): it has no form of aten._cdist_forward",
    ):
        lower("onnx", segment, (1, WINDOW), tensors)


def test_what_a_format_cannot_say_is_refused_with_the_line_that_wrote_it():
    graph, segment = whole(make(Unsayable))
    tensors = {name: value.detach().numpy() for name, value in graph.module.state_dict().items()}
    with pytest.raises(
        UsageError,
        match=r"torch.onnx cannot lower .*: node special_bessel_j0 \(test_exportable.py, line \d+: y = torch.*\): ",
    ) as caught:
        lower("onnx", segment, (1, WINDOW), tensors)
    assert "\n" not in str(caught.value)
