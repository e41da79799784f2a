import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import GOOD, WINDOW, Convolutional, InplaceInput, NoGrad, ReadThroughView, Skip, make
from toys import Tiny

from runtime_edge.errors import FormatError, UsageError
from streamsplit_compile.bundle.cut_choice import choose_cuts
from streamsplit_compile.bundle.soundscape import soundscape
from streamsplit_compile.encoder.encoders import load_encoder, new_encoder, save_checkpoint
from streamsplit_compile.encoder.graph import export_encoder
from streamsplit_compile.encoder.segment import extract, split

if importlib.util.find_spec("litert_torch") is None:
    pytest.skip("litert-torch is not installed: extra compile-tflite", allow_module_level=True)

from streamsplit_compile.lowering import tflite_lowering
from streamsplit_compile.lowering.tflite_file import Interpreter, read_graph
from streamsplit_compile.lowering.tflite_lowering import (
    INPUT,
    OUTPUT,
    keep_graph,
    lower,
    needs_conversion,
    parameter_names,
    write_weights,
)

pytestmark = pytest.mark.integration

# The converter multiplies these weights by two, or adds to them, so that they cannot be written in later.
CONVERTED_AGAIN = {Skip, InplaceInput, ReadThroughView}


def tensors_of(encoder):
    return {name: value.detach().numpy() for name, value in encoder.module.state_dict().items()}


def whole(encoder):
    return extract(encoder, encoder.candidates[0], encoder.candidates[-1])


def keep(encoder):
    return keep_graph(whole(encoder), encoder.candidates[0].shape, tensors_of(encoder).keys())


def run(data, activation):
    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert source["dtype"] is result["dtype"] is np.float32
    return interpreter.get_signature_runner()(**{INPUT: activation})[OUTPUT]


def noise(samples, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (1, samples)).astype(np.float32)


def embed(module, window):
    with torch.inference_mode():
        return module(torch.from_numpy(window.copy())).numpy()


@pytest.fixture(scope="module")
def kept_tiny():
    return keep(export_encoder(Tiny(), 1024))


@pytest.fixture(scope="module")
def tiny_tensors():
    return tensors_of(export_encoder(Tiny(), 1024))


@pytest.fixture(scope="module")
def mobile(tmp_path_factory):
    path = tmp_path_factory.mktemp("mobile") / "encoder.pt"
    save_checkpoint("mobilenet_v3_small", {"width": 0.5}, new_encoder("mobilenet_v3_small", {"width": 0.5})[0], path)
    return load_encoder(path)


@pytest.fixture
def encoder(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(("encoder", "cuts"), [("resnet_encoder", "auto"), ("mobile", "3")], indirect=["encoder"])
def test_blocks_in_a_chain_are_the_encoder_also_with_new_weights(encoder, cuts, monkeypatch):
    cuts = choose_cuts(encoder, cuts)
    kept = [
        keep_graph(segment, cut.shape, encoder.tensors.keys())
        for segment, cut in zip(split(encoder.graph, cuts), cuts, strict=False)
    ]
    # Nothing is converted from here on.
    monkeypatch.setattr(tflite_lowering, "convert", None)
    rng = np.random.default_rng(0)
    other = {
        name: value + 0.1 * value.std() * rng.standard_normal(value.shape).astype(np.float32)
        if value.dtype == np.float32 and value.ndim > 1
        else value
        for name, value in encoder.tensors.items()
    }
    samples = encoder.window_samples
    windows = soundscape(4 * samples / encoder.sample_rate, encoder.sample_rate, 1).reshape(4, 1, samples)
    for tensors in (encoder.tensors, other):
        blocks = [write_weights(graph, tensors) for graph in kept]
        state = {name: torch.from_numpy(value) for name, value in tensors.items()}
        for window in windows:
            activation = window
            for block in blocks:
                activation = run(block, activation)
            with torch.inference_mode():
                expected = torch.func.functional_call(encoder.graph.module, state, torch.from_numpy(window))
            np.testing.assert_allclose(activation, expected.numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [NoGrad, Convolutional, *sorted(CONVERTED_AGAIN, key=str)], ids=lambda k: k.__name__)
def test_any_encoder_is_kept_or_converted_again(kind):
    assert kind in GOOD
    encoder = export_encoder(make(kind), WINDOW)
    kept = keep(encoder)
    assert needs_conversion(kept) == (kind in CONVERTED_AGAIN)
    other = make(kind)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    tensors = {name: value.detach().numpy() for name, value in other.state_dict().items()}
    assert set(parameter_names(kept)) == {name for name in tensors if not name.endswith("num_batches_tracked")}
    if needs_conversion(kept):
        with pytest.raises(FormatError, match="must be converted again"):
            write_weights(kept, tensors)
        data = lower(whole(encoder), (1, WINDOW), tensors)
    else:
        data = write_weights(kept, tensors)
    for seed in range(3):
        window = noise(WINDOW, seed)
        np.testing.assert_allclose(run(data, window), embed(other, window), atol=1e-5, rtol=1e-5)


def test_the_kept_graph_holds_no_weights_and_depends_on_none(kept_tiny):
    assert keep(export_encoder(Tiny(seed=1), 1024)) == kept_tiny
    assert len(kept_tiny) < 6000


def test_norms_are_folded_into_convolutions(kept_tiny, tiny_tensors):
    codes = [node.code for node in read_graph(write_weights(kept_tiny, tiny_tensors)).nodes]
    # The one product and sum left are the residual's and the unit norm's.
    assert codes.count("ADD") == 1
    assert codes.count("MUL") == 1


def test_the_file_names_its_layers_and_nothing_of_where_it_was_made(kept_tiny, tiny_tensors):
    data = write_weights(kept_tiny, tiny_tensors)
    assert any(name.startswith("residual.conv") for name in read_graph(data).names)
    for trace in (str(Path.cwd()), "site-packages", "toys", torch.__version__):
        assert trace.encode() not in data
        assert trace.encode() not in kept_tiny


PROGRAM = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from toys import Tiny
from streamsplit_compile.encoder.graph import export_encoder
from streamsplit_compile.encoder.segment import extract
from streamsplit_compile.lowering.tflite_lowering import keep_graph
encoder = export_encoder(Tiny(), 1024)
segment = extract(encoder, encoder.candidates[0], encoder.candidates[-1])
print(hashlib.sha256(keep_graph(segment, (1, 1024), encoder.module.state_dict().keys())).hexdigest())
"""


def test_another_process_gives_the_same_bytes_and_says_nothing_else(kept_tiny):
    data = Path(__file__).parents[2] / "data"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-W", "default", "-c", PROGRAM, str(data)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == hashlib.sha256(kept_tiny).hexdigest() + "\n"
    assert result.stderr == ""


def test_the_converter_is_not_heard(capfd, caplog):
    keep(export_encoder(make(Convolutional), WINDOW))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_what_tflite_cannot_say_is_refused():
    class Spectrum(Tiny):
        def forward(self, waveform):
            return super().forward(torch.linalg.pinv(waveform.view(-1, 32, 32)).reshape(-1, 1024))

    with pytest.raises(
        UsageError, match=r"litert-torch cannot lower .*: node linalg_pinv \(test_tflite_lowering.py, line \d+: "
    ):
        keep(export_encoder(Spectrum(), 1024))


def test_weights_that_are_missing_or_of_another_shape_are_refused(kept_tiny, tiny_tensors):
    missing = {name: value for name, value in tiny_tensors.items() if name != "head.bias"}
    with pytest.raises(KeyError, match=r"head\.bias"):
        write_weights(kept_tiny, missing)
    with pytest.raises(FormatError, match=r"'head\.bias' is <f4 \(7,\)"):
        write_weights(kept_tiny, {**tiny_tensors, "head.bias": np.zeros(7, np.float32)})
    with pytest.raises(FormatError, match=r"'head\.bias' is <f8"):
        write_weights(kept_tiny, {**tiny_tensors, "head.bias": np.zeros(6)})


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 10**6), value=st.integers(1, 255), cut=st.booleans())
def test_damaged_kept_graphs_are_refused_or_stay_in_bounds(kept_tiny, tiny_tensors, position, value, cut):
    position %= len(kept_tiny)
    damaged = bytearray(kept_tiny[:position] if cut else kept_tiny)
    if not cut:
        damaged[position] ^= value
    with contextlib.suppress(FormatError, KeyError):
        assert isinstance(write_weights(bytes(damaged), tiny_tensors), bytes)
