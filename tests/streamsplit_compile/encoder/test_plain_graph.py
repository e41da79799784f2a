import statistics

import pytest
import torch
from shapes import WINDOW, Linear, NoGrad, make
from torch import nn

from runtime_edge.errors import UsageError
from streamsplit_compile.encoder.encoders import from_module, load_encoder, read_tensors
from streamsplit_compile.encoder.graph import export_encoder, ignores_waveform


class Autocast(Linear):
    """The first layer's result is kept out of autocast, as CED and RawNet3 keep their front ends."""

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            y = torch.relu(self.first(x))
        return self.second(y)


class AutocastOn(Linear):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = super().forward(x)
        return y.float()


class Cast(Linear):
    """Activations in the type of the weights, and back."""

    def forward(self, x):
        return super().forward(x.to(self.first.weight.dtype)).float()


class Branches(Linear):
    def forward(self, x):
        y = self.first(x)
        y = torch.cond(y.mean() > 0, lambda z: z * 2, lambda z: z * 3 + 1, (y,))
        return self.second(y)


class Nested(Linear):
    """A constant and a region within a region."""

    def forward(self, x):
        with torch.no_grad():
            y = self.first(x)
            with torch.autocast("cpu", enabled=False):
                y = y + torch.arange(16.0)
        return self.second(y)


def window(seed=0):
    return torch.rand(1, WINDOW, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("kind", [NoGrad, Autocast, Nested], ids=lambda kind: kind.__name__)
def test_regions_are_in_the_graph_itself_and_compute_the_same(kind):
    module = make(kind)
    graph = export_encoder(module, WINDOW)
    assert all(node.op != "get_attr" or "submod" not in str(node.target) for node in graph.module.graph.nodes)
    for seed in range(4):
        assert torch.equal(graph.module(window(seed)), module(window(seed)))


@pytest.mark.parametrize("kind", [Autocast, NoGrad], ids=lambda kind: kind.__name__)
def test_an_encoder_can_be_cut_within_a_region(kind):
    assert "first" in [candidate.name for candidate in export_encoder(make(kind), WINDOW).candidates]


def test_what_is_under_no_grad_is_not_trained():
    graph = export_encoder(make(NoGrad), WINDOW)
    graph.module(window()).sum().backward()
    assert graph.module.first.weight.grad is None
    assert graph.module.second.weight.grad is not None


def test_both_branches_are_computed_and_one_is_chosen():
    module = make(Branches)
    graph = export_encoder(module, WINDOW).module
    chosen = set()
    for seed in range(8):
        y = module.first(window(seed))
        chosen.add(bool(y.mean() > 0))
        torch.testing.assert_close(graph(window(seed)), module.second(y * 2 if y.mean() > 0 else y * 3 + 1))
    assert chosen == {True, False}


def test_branches_are_for_one_window_at_a_time():
    assert export_encoder(make(Branches), WINDOW).dynamic_batch is False
    assert export_encoder(make(Autocast), WINDOW).dynamic_batch is True


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [Cast, Linear], ids=lambda kind: kind.__name__)
def test_weights_of_half_precision_are_kept_and_computed_with_in_float32(kind, dtype):
    narrow = make(kind).to(dtype)
    encoder = from_module("net", {}, narrow, 1000)
    assert {value.dtype.name for value in encoder.tensors.values()} == {"float32"}
    for name, value in narrow.state_dict().items():
        assert torch.equal(torch.from_numpy(encoder.tensors[name]), value.float())
    wide = make(Linear)
    wide.load_state_dict({name: value.float() for name, value in narrow.state_dict().items()})
    torch.testing.assert_close(encoder.graph.module(window()), wide(window()))
    assert {"first", "relu"} <= {candidate.name for candidate in encoder.graph.candidates}
    assert next(narrow.parameters()).dtype == dtype


class HalfBehindSpectra(Linear):
    """Weights of half precision behind a transform, whose value torch cannot work out for any batch but its own."""

    def forward(self, x):
        spectrum = torch.stft(x, 32, 8, window=torch.hann_window(32), return_complex=True).abs()
        return super().forward(nn.functional.pad(spectrum.mean(2), (0, WINDOW - 17)).bfloat16()).float()


def test_half_precision_behind_a_front_end_leaves_the_batch_open():
    encoder = export_encoder(make(HalfBehindSpectra).bfloat16(), WINDOW)
    assert encoder.dynamic_batch
    assert {candidate.shape[0] for candidate in encoder.candidates} == {1}
    assert len(encoder.candidates) > 4


def test_autocast_to_half_precision_is_computed_in_float32():
    module = make(AutocastOn)
    graph = export_encoder(module, WINDOW)
    torch.testing.assert_close(graph.module(window()), Linear.forward(module, window()))
    assert "first" in [candidate.name for candidate in graph.candidates]


def test_an_archive_of_half_precision_can_be_cut(tmp_path):
    module = make(Linear).half()
    program = torch.export.export(module, (torch.zeros(1, WINDOW, dtype=torch.float16),))
    torch.export.save(program, tmp_path / "half.pt2")
    encoder = load_encoder(tmp_path / "half.pt2", sample_rate=1000)
    assert encoder.graph.module(window()).dtype == torch.float32
    assert [candidate.name for candidate in encoder.graph.candidates][1] == "first"


def test_an_archive_with_autocast_is_admitted(tmp_path):
    module = make(Autocast)
    torch.export.save(torch.export.export(module, (torch.zeros(1, WINDOW),)), tmp_path / "net.pt2")
    encoder = load_encoder(tmp_path / "net.pt2", sample_rate=1000)
    assert torch.equal(encoder.graph.module(window()), module(window()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_alone_are_read_as_float32(tmp_path, dtype):
    module = nn.Linear(2, 3).to(dtype)
    torch.save(module.state_dict(), tmp_path / "half.pt")
    tensors = read_tensors(tmp_path / "half.pt")
    assert tensors["weight"].dtype.name == "float32"
    assert torch.equal(torch.from_numpy(tensors["weight"]), module.weight.detach().float())


class Choice(Linear):
    def forward(self, x):
        if x.mean() > 0:
            x = x * 2
        return super().forward(x)


class Length(Linear):
    def forward(self, x):
        return super().forward(x[:, : int(x.sum().item())])


class Library(Linear):
    """What goes wrong in Python's own files is said of the line that led there."""

    def forward(self, x):
        return super().forward(x) * statistics.mean([])


class Broken(Linear):
    def forward(self, x):
        raise RuntimeError("no such thing")


@pytest.mark.parametrize(
    ("kind", "line", "reason"),
    [
        (Choice, r"if x.mean\(\) > 0:", "use torch.where in place of `if` on values"),
        (Length, r"return super\(\).forward\(x\[:, : int\(x.sum\(\).item\(\)\)\]\)", "sizes that are the same"),
        (Library, r"return super\(\).forward\(x\) \* statistics.mean\(\[\]\)", "at least one data point"),
        (Broken, r'raise RuntimeError\("no such thing"\)', "no such thing"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_the_line_that_wrote_it(kind, line, reason):
    with pytest.raises(UsageError, match=rf"test_plain_graph.py, line \d+: {line}: .*{reason}") as caught:
        export_encoder(make(kind), WINDOW)
    assert "\n" not in str(caught.value)


def test_an_encoder_that_ignores_its_waveform_is_found_out():
    class Fixed(Linear):
        def forward(self, x):
            return super().forward(x * 0)

    assert ignores_waveform(export_encoder(make(Fixed), WINDOW))
    assert not ignores_waveform(export_encoder(make(Linear), WINDOW))
