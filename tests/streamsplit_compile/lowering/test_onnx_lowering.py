import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from shapes import GOOD, WINDOW, Convolutional, FoldedBatch, Linear, make
from torch import nn
from toys import Tiny

from runtime_edge.errors import FormatError, UsageError
from streamsplit_compile.encoder.graph import export_encoder
from streamsplit_compile.encoder.segment import extract, split
from streamsplit_compile.lowering.onnx_lowering import INPUT, OPSET, OUTPUT, keep_graph, parameter_names, write_weights

pytestmark = pytest.mark.integration


def tensors_of(encoder):
    return {name: value.detach().numpy() for name, value in encoder.module.state_dict().items()}


def lower(encoder, start=0, end=-1, **options):
    first, last = encoder.candidates[start], encoder.candidates[end]
    tensors = tensors_of(encoder)
    kept = keep_graph(extract(encoder, first, last), first.shape, tensors.keys())
    return kept, write_weights(kept, tensors, {"ssc.encoder": "toy", "sample_rate": "1000"}, **options)


def run(data, activation):
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (source,), (result,) = session.get_inputs(), session.get_outputs()
    assert (source.name, result.name) == (INPUT, OUTPUT)
    return session.run(None, {INPUT: activation})[0]


def operators(data):
    return [node.op_type for node in onnx.load_from_string(data).graph.node]


class ComplexFilters(Linear):
    """Weights that are complex numbers."""

    def __init__(self):
        super().__init__()
        self.filters = nn.Parameter(torch.randn(5, 17, dtype=torch.complex64))
        self.third = nn.Linear(5, 8)

    def forward(self, x):
        spectrum = torch.stft(x, 32, 8, window=torch.hann_window(32), return_complex=True)
        return self.third(torch.matmul(self.filters, spectrum).abs().mean(2))


@pytest.fixture(scope="module")
def tiny():
    return export_encoder(Tiny(), 1024)


@pytest.fixture(scope="module")
def lowered(tiny):
    return lower(tiny)


@pytest.mark.parametrize("kind", [*GOOD, ComplexFilters], ids=lambda kind: kind.__name__)
def test_a_lowered_encoder_is_the_torch_module(kind):
    module = make(kind)
    _, data = lower(export_encoder(module, WINDOW))
    for seed in range(3):
        window = np.random.default_rng(seed).uniform(-1, 1, (1, WINDOW)).astype(np.float32)
        with torch.inference_mode():
            expected = module(torch.from_numpy(window.copy())).numpy()
        np.testing.assert_allclose(run(data, window), expected, atol=1e-5, rtol=0)


def test_segments_in_a_chain_are_the_torch_module(tiny):
    cuts = [candidate for candidate in tiny.candidates if candidate.name in ("waveform", "stem", "residual")]
    cuts.append(tiny.candidates[-1])
    window = np.random.default_rng(0).uniform(-1, 1, (1, 1024)).astype(np.float32)
    activation = window
    for segment, cut in zip(split(tiny, cuts), cuts, strict=False):
        kept = keep_graph(segment, cut.shape, tensors_of(tiny).keys())
        activation = run(write_weights(kept, tensors_of(tiny), {}), activation)
    with torch.inference_mode():
        expected = Tiny()(torch.from_numpy(window)).numpy()
    np.testing.assert_allclose(activation, expected, atol=1e-5, rtol=0)


def test_a_segment_inside_a_folded_batch_takes_all_frames():
    encoder = export_encoder(make(FoldedBatch), WINDOW)
    inside = next(candidate.position for candidate in encoder.candidates if candidate.name == "frame")
    _, data = lower(encoder, start=inside)
    frames = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    with torch.inference_mode():
        suffix = extract(encoder, encoder.candidates[inside], encoder.candidates[-1])
        expected = suffix(torch.from_numpy(frames)).numpy()
    np.testing.assert_allclose(run(data, frames), expected, atol=1e-5, rtol=0)


def test_the_kept_graph_holds_no_weights_and_depends_on_none(lowered):
    kept, _ = lowered
    silent = Tiny()
    with torch.no_grad():
        for parameter in silent.parameters():
            parameter.zero_()
    assert kept == lower(export_encoder(silent, 1024))[0]
    assert len(kept) < 8000
    unused = {name for name in Tiny().state_dict() if name.endswith("num_batches_tracked")}
    assert set(parameter_names(kept)) == Tiny().state_dict().keys() - unused


def test_new_weights_in_a_kept_graph_are_a_lowering_of_those_weights(lowered):
    kept, data = lowered
    other = export_encoder(Tiny(seed=1), 1024)
    metadata = {"ssc.encoder": "toy", "sample_rate": "1000"}
    assert write_weights(kept, tensors_of(other), metadata) == lower(other)[1] != data


def test_norms_are_folded_into_convolutions_unless_they_are_kept():
    encoder = export_encoder(make(Convolutional), WINDOW)
    _, folded = lower(encoder)
    _, unfolded = lower(encoder, norms="kept")
    # One stands before its convolution and cannot be folded into it.
    assert operators(folded).count("BatchNormalization") == 1
    assert operators(unfolded).count("BatchNormalization") == 3
    window = np.random.default_rng(0).normal(size=(1, WINDOW)).astype(np.float32)
    np.testing.assert_allclose(run(folded, window), run(unfolded, window), atol=1e-5, rtol=0)


def test_the_file_says_what_it_is_and_nothing_of_where_it_was_made(lowered):
    kept, data = lowered
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert {item.key: item.value for item in model.metadata_props} == {"sample_rate": "1000", "ssc.encoder": "toy"}
    assert [item.version for item in model.opset_import if item.domain == ""] == [OPSET]
    assert {item.domain for item in model.opset_import} == {""}
    for content in (kept, data):
        for trace in (str(Path.cwd()), "site-packages", "toys.py", torch.__version__, "pkg.torch"):
            assert trace.encode() not in content


def test_the_shapes_are_those_of_one_window(lowered):
    model = onnx.load_from_string(lowered[1])
    (source,), (result,) = model.graph.input, model.graph.output
    sizes = [[item.dim_value for item in value.type.tensor_type.shape.dim] for value in (source, result)]
    assert sizes == [[1, 1024], [1, 6]]


def test_lowering_twice_gives_the_same_bytes(lowered):
    assert lower(export_encoder(Tiny(), 1024)) == lowered


def test_another_process_gives_the_same_bytes(lowered, tmp_path):
    code = (
        "import hashlib, sys\n"
        "from pathlib import Path\n"
        "from streamsplit_compile.encoder.encoders import load_encoder\n"
        "from streamsplit_compile.lowering.onnx_lowering import keep_graph, write_weights\n"
        "encoder = load_encoder(Path(sys.argv[1]), 'toys:Tiny')\n"
        "graph, tensors = encoder.graph, encoder.tensors\n"
        "kept = keep_graph(graph.module, graph.candidates[0].shape, tensors.keys())\n"
        "data = write_weights(kept, tensors, {'sample_rate': '1000', 'ssc.encoder': 'toy'})\n"
        "print(hashlib.sha256(data).hexdigest())\n"
    )
    path = tmp_path / "tiny.pt"
    torch.save(Tiny().state_dict(), path)
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(sys.modules["toys"].__file__).parent)}
    command = [sys.executable, "-W", "ignore", "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == hashlib.sha256(lowered[1]).hexdigest()


def test_a_missing_tensor_is_named(tiny, lowered):
    kept, _ = lowered
    tensors = tensors_of(tiny)
    del tensors["head.bias"]
    with pytest.raises(KeyError, match=r"head\.bias"):
        write_weights(kept, tensors, {})


@pytest.mark.parametrize(
    "wrong", [np.zeros((6, 13), np.float32), np.zeros(72, np.float32), np.zeros((6, 12)), np.zeros((6, 12), np.int64)]
)
def test_a_tensor_of_another_shape_or_type_is_refused_by_name(tiny, lowered, wrong):
    kept, _ = lowered
    with pytest.raises(FormatError, match=r"tensor head\.weight is .*, the graph needs float32 \[6, 12\]"):
        write_weights(kept, {**tensors_of(tiny), "head.weight": wrong}, {})


def test_tensors_of_any_memory_layout_are_taken(tiny, lowered):
    kept, data = lowered
    tensors = {name: np.asfortranarray(value) for name, value in tensors_of(tiny).items()}
    assert write_weights(kept, tensors, {"ssc.encoder": "toy", "sample_rate": "1000"}) == data


def test_a_module_used_twice_keeps_both_of_its_norms():
    class Shared(Linear):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)
            self.norms = torch.nn.ModuleList([torch.nn.BatchNorm2d(1) for _ in range(2)])
            for number, norm in enumerate(self.norms, 1):
                norm.running_mean += number
                norm.running_var *= number

        def forward(self, x):
            y = x.view(-1, 1, 8, 8)
            for norm in self.norms:
                y = norm(self.conv(y))
            return super().forward(y.flatten(1))

    torch.manual_seed(0)
    module = Shared().eval()
    _, data = lower(export_encoder(module, WINDOW))
    window = torch.rand(1, WINDOW)
    with torch.inference_mode():
        expected = module(window).numpy()
    assert "BatchNormalization" not in operators(data)
    np.testing.assert_allclose(run(data, window.numpy()), expected, atol=1e-5, rtol=0)


class Recurrent(nn.Module):
    """An LSTM over eight steps, perhaps with a projection."""

    def __init__(self, proj_size):
        super().__init__()
        self.lstm = nn.LSTM(WINDOW // 8, 6, batch_first=True, proj_size=proj_size)

    def forward(self, x):
        return self.lstm(x.reshape(-1, 8, WINDOW // 8))[0].mean(1)


def test_an_lstm_that_projects_its_state_is_refused_with_its_line_and_a_mend():
    whole = r"node lstm.*\(.*test_onnx_lowering\.py, line \d+.*\): .*proj_size\).*or with an nn\.Linear behind it"
    with pytest.raises(UsageError, match=whole):
        lower(export_encoder(Recurrent(3), WINDOW))
    assert "LSTM" in operators(lower(export_encoder(Recurrent(0), WINDOW))[1])


def test_a_damaged_kept_graph_is_refused_in_one_line(tiny, lowered):
    kept, _ = lowered
    wrong = onnx.load_from_string(kept)
    wrong.graph.node.insert(0, onnx.helper.make_node("Nonsense", ["head.weight"], ["nonsense"]))
    for damaged in (kept[:-5], wrong.SerializeToString()):
        with pytest.raises(FormatError, match=r"kept graph: .*; compile it again"):
            write_weights(damaged, tensors_of(tiny), {})
    with pytest.raises(FormatError, match="kept graph: not an ONNX model"):
        parameter_names(kept[:-5])
