import pytest
import torch
from shapes import GOOD, WINDOW, FoldedBatch, Linear, Skip, StaticBatch, make
from torch import nn
from toys import Tiny

from runtime_edge.errors import UsageError
from streamsplit_compile.encoder.graph import export_encoder, graph_of_program, ignores_waveform, is_size
from streamsplit_compile.encoder.quiet import quiet
from streamsplit_models.mobilenet import mobilenet_v3_small

pytestmark = pytest.mark.integration


def names(module, window=WINDOW):
    return [candidate.name for candidate in export_encoder(module.eval(), window).candidates]


def bottlenecks(encoder):
    """Nodes that every path from the waveform to the embedding goes through, by taking each away in turn."""
    graph = encoder.module.graph
    (waveform,) = [node for node in graph.nodes if node.op == "placeholder"]
    (output,) = [node for node in graph.nodes if node.op == "output"]

    def connected(without):
        pending, seen = [waveform], {without}
        while pending:
            node = pending.pop()
            if node not in seen and not is_size(node):
                seen.add(node)
                pending.extend(node.users)
        return output in seen

    found = []
    for node in graph.nodes:
        value = node.meta.get("val")
        tensor = node.op != "output" and isinstance(value, torch.Tensor) and value.dtype == torch.float32
        if tensor and not connected(node):
            found.append(node.name)
    return found


@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.__name__)
def test_candidates_are_the_bottlenecks_of_the_graph(kind):
    encoder = export_encoder(make(kind), WINDOW)
    assert [candidate.node for candidate in encoder.candidates] == bottlenecks(encoder)


def test_candidates_of_resnet_are_the_bottlenecks_of_its_graph(resnet_encoder):
    graph = resnet_encoder.graph
    assert [candidate.node for candidate in graph.candidates] == bottlenecks(graph)
    assert len(graph.candidates) > 20


def test_cuts_of_resnet_are_named_after_its_modules(resnet_encoder):
    found = [candidate.name for candidate in resnet_encoder.graph.candidates if candidate.boundary]
    blocks = [f"layer{layer}.{block}" for layer in (1, 2, 3, 4) for block in (0, 1)]
    stages = ["waveform", "log_mel", "input_norm", "stem", *blocks, "pool", "projection", "normalize"]
    assert [name for name in found if not name.startswith("stem.")] == stages


def test_cuts_of_mobilenet_are_named_after_its_modules():
    module = mobilenet_v3_small()
    encoder = export_encoder(module, module.window_samples)
    paths = {path for path, _ in module.named_modules()} | {"waveform"}
    found = [candidate.name for candidate in encoder.candidates if candidate.boundary]
    assert found[0] == "waveform"
    assert set(found) <= paths
    assert set(module.stages) <= set(found)
    assert len(bottlenecks(encoder)) == len(encoder.candidates)


def test_candidates_have_shapes_of_one_window_and_count_up(tiny_encoder):
    candidates = tiny_encoder.graph.candidates
    assert [candidate.position for candidate in candidates] == list(range(len(candidates)))
    assert candidates[0].shape == (1, 1024)
    assert candidates[-1].shape == (1, 6)
    assert {candidate.name: candidate.shape for candidate in candidates}["stem"] == (1, 8, 127)
    assert len({candidate.name for candidate in candidates}) == len(candidates)


def test_nothing_is_cut_inside_a_residual(tiny_encoder):
    found = [candidate.name for candidate in tiny_encoder.graph.candidates]
    assert "residual" in found
    assert "residual.conv" not in found
    assert names(make(Skip)) == ["waveform", "mul", "add"]


def test_a_module_that_is_used_twice_gives_two_names():
    class Twice(Linear):
        def __init__(self):
            super().__init__()
            self.same = nn.Linear(8, 8)

        def forward(self, x):
            return self.same(self.same(super().forward(x)))

    found = names(Twice())
    assert found[-1] == "same"
    assert len(set(found)) == len(found) == 6


def test_a_folded_batch_counts_frames_as_one_window():
    encoder = export_encoder(make(FoldedBatch), WINDOW)
    shapes = {candidate.name: candidate.shape for candidate in encoder.candidates}
    assert shapes["frame"] == shapes["wide"] == (4, 4)
    assert shapes["waveform"] == (1, 64)
    assert encoder.dynamic_batch


def test_an_encoder_for_one_window_at_a_time_is_taken_with_a_fixed_batch():
    encoder = export_encoder(make(StaticBatch), WINDOW)
    assert not encoder.dynamic_batch
    assert encoder.candidates[0].shape == (1, WINDOW)
    assert export_encoder(make(Linear), WINDOW).dynamic_batch


def test_values_of_constants_alone_do_not_count():
    class Positions(Linear):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(16))

        def forward(self, x):
            positions = torch.sin(self.table * torch.arange(16.0))  # alive across the first layer
            return self.second(torch.relu(self.first(x)) + positions)

    found = names(Positions())
    assert found[:3] == ["waveform", "first", "relu"]


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda m, x: (m.first(x), m.first(x)), "returns 2 values"),
        (lambda m, x: (m.first(x), x.shape[0]), "returns 2 values"),
        (lambda m, x: x.shape[0], "expected a float32 embedding"),
        (lambda m, x: m.first(x).view(-1, 4, 4), r"expected a float32 embedding .*\(.*, 4, 4\)"),
        (lambda m, x: m.first(x).double(), "expected a float32 embedding .*float64"),
        (lambda m, x: m.first(x).argmax(1, keepdim=True), "expected a float32 embedding .*int64"),
        (lambda m, x: m.first(x).mean(0, keepdim=True), "expected a float32 embedding"),
        (lambda m, x: m.first(x)[:1], "expected a float32 embedding"),
        (lambda m, x: torch.cat([m.first(x)] * 2), "expected a float32 embedding"),
        (lambda m, x: x, "returns its input"),
        (lambda m, x: m.first(x) if x.sum() > 0 else m.first(-x), "cannot be exported by torch.export: "),
        (lambda m, x: m.first(x)[:, x[0, :16] > 0.5], r"test_graph.py, line \d+: .*its size depends on values"),
        (lambda m, x: m.missing(x), "cannot be exported by torch.export: .*missing"),
    ],
)
def test_what_is_no_encoder_is_refused_in_one_line(forward, message, caplog):
    class Wrong(Linear):
        def forward(self, x):
            return forward(self, x)

    with pytest.raises(UsageError, match=message) as caught:
        export_encoder(Wrong(), WINDOW)
    assert "\n" not in str(caught.value)


def test_a_dictionary_of_one_embedding_is_fine():
    class Named(Linear):
        def forward(self, x):
            return {"embedding": super().forward(x)}

    assert names(Named())[-1] == "second"
    assert not ignores_waveform(export_encoder(Named(), WINDOW))


def test_a_forward_that_asks_for_more_than_the_waveform_is_refused_by_argument():
    class Lengths(Linear):
        def forward(self, x, lengths):
            return super().forward(x) / lengths

    class MayLengths(Lengths):
        def forward(self, x, lengths=1):
            return super().forward(x, lengths)

    with pytest.raises(UsageError, match=r"forward\(\): .*'lengths'; wrap it so that it takes only the waveform"):
        export_encoder(Lengths(), WINDOW)
    assert names(MayLengths())[-1] == "div"


def test_what_a_state_dict_holds_beside_tensors_hides_no_reason():
    class Packed(Linear):
        def get_extra_state(self):
            return torch.qint8

        def forward(self, x):
            raise RuntimeError("packed")

    with pytest.raises(UsageError, match=r"cannot be exported by torch.export: .*: packed"):
        export_encoder(Packed(), WINDOW)


def program(module, *inputs, shapes=None):
    return torch.export.export(module, inputs, dynamic_shapes=shapes)


def test_a_program_with_two_inputs_is_refused():
    class Two(Linear):
        def forward(self, x, y):
            return super().forward(x + y)

    with pytest.raises(UsageError, match=r"takes 2 inputs \(\[x, y\]\)"):
        graph_of_program(program(Two().eval(), torch.zeros(1, WINDOW), torch.zeros(1, WINDOW)))


@pytest.mark.parametrize("waveform", [torch.zeros(1, 1, WINDOW), torch.zeros(WINDOW), torch.zeros(1, WINDOW).int()])
def test_a_program_that_takes_no_waveform_is_refused(waveform):
    class Any(Linear):
        def forward(self, x):
            return super().forward(x.float().reshape(1, WINDOW))

    with pytest.raises(UsageError, match=r"input x: expected float32 \(batch, samples\), got "):
        graph_of_program(program(Any().eval(), waveform))


def test_a_program_for_a_batch_of_four_or_any_length_is_refused():
    with pytest.raises(UsageError, match=r"input x: exported for .*\(4, 64\); export with a batch of 1 or a dynamic"):
        graph_of_program(program(make(Linear), torch.zeros(4, WINDOW)))

    class AnyLength(nn.Module):
        def forward(self, x):
            return torch.stack([x.mean(1), x.amax(1)], 1)

    shapes = ({1: torch.export.Dim("samples", min=8)},)
    with pytest.raises(UsageError, match="a fixed number of samples"):
        graph_of_program(program(AnyLength(), torch.zeros(1, WINDOW), shapes=shapes))


@pytest.mark.parametrize(("layer", "node"), [(nn.Dropout(0.5), "dropout"), (nn.BatchNorm1d(8), "batch_norm")])
def test_a_program_exported_in_training_mode_is_refused_by_node(layer, node):
    module = nn.Sequential(nn.Linear(WINDOW, 8), layer).train()
    shapes = ({0: torch.export.Dim("batch")},)
    with pytest.raises(UsageError, match=rf"node {node}.*: works as in training; call \.eval"):
        graph_of_program(program(module, torch.zeros(2, WINDOW), shapes=shapes))
    graph_of_program(program(module.eval(), torch.zeros(1, WINDOW)))


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize("layer", [nn.GRU(8, 8, dropout=0.5, num_layers=2), nn.TransformerEncoderLayer(8, 2)])
def test_layers_that_could_drop_values_but_do_not_are_taken(layer):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.layer = nn.Linear(WINDOW, 8), layer

        def forward(self, x):
            found = self.layer(self.first(x)[:, None])
            return (found[0] if isinstance(found, tuple) else found)[:, 0]

    graph_of_program(program(Wrapped().eval(), torch.zeros(1, WINDOW)))
    with pytest.raises(UsageError, match=r"node [a-z_]+.*: works as in training"):
        graph_of_program(program(Wrapped().train(), torch.zeros(1, WINDOW)))


def test_random_numbers_are_refused_by_node():
    class Noisy(nn.Module):
        def forward(self, x):
            return x[:, :8] + torch.randn_like(x[:, :8])

    with pytest.raises(UsageError, match=r"node randn_like \(test_graph\.py, line \d+: .*\): draws random numbers"):
        graph_of_program(program(Noisy(), torch.zeros(1, WINDOW)))


def test_a_decomposed_program_is_taken_too():
    module = Tiny()
    with quiet():
        decomposed = program(module, torch.zeros(1, 1024)).run_decompositions()
    encoder = graph_of_program(decomposed)
    waveform = torch.rand(1, 1024)
    torch.testing.assert_close(encoder.module(waveform), module(waveform), atol=1e-6, rtol=0)
    assert {"stem", "down", "residual"} <= {candidate.name for candidate in encoder.candidates}


def test_a_node_that_is_not_there_is_refused(tiny_encoder):
    assert tiny_encoder.graph.node("relu").name == "relu"
    with pytest.raises(UsageError, match="no node 'nothing'; was the bundle compiled from this encoder"):
        tiny_encoder.graph.node("nothing")


def test_exporting_leaves_the_module_in_eval_mode():
    module = Tiny().train()
    export_encoder(module, 1024)
    assert not module.training


class InlineLogMel(nn.Module):
    """Log-mels written into forward(), and blocks as modules behind them."""

    sample_rate, window_samples = 16000, 4000

    def __init__(self, guarded):
        super().__init__()
        self.guarded = guarded
        self.register_buffer("window", torch.hann_window(256))
        self.register_buffer("bank", torch.rand(16, 129))
        self.first = nn.Conv1d(16, 64, 3, padding=1)
        self.second = nn.Linear(64, 8)

    def log_mel(self, x):
        spectrum = torch.stft(x, 256, 160, window=self.window, return_complex=True).abs() ** 2
        return torch.log(self.bank @ spectrum + 1e-6)

    def forward(self, x):
        with torch.set_grad_enabled(not self.guarded):
            mel = self.log_mel(x)
        return self.second(self.first(mel.unsqueeze(1).squeeze(1)).mean(2))


@pytest.mark.parametrize("guarded", [False, True], ids=["free", "no_grad"])
def test_the_end_of_a_front_end_written_into_forward_is_a_boundary(guarded):
    graph = export_encoder(InlineLogMel(guarded), 4000)
    inside = [candidate for candidate in graph.candidates if candidate.boundary][1]
    assert inside.shape == (1, 16, 26)
    assert inside.node in ("log", "getitem", "detach")
    before = {candidate.node for candidate in graph.candidates if not candidate.boundary}
    assert before >= {"abs_1"}
