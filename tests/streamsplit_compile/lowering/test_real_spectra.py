import pytest
import torch
from torch import nn

from runtime_edge.errors import UsageError
from streamsplit_compile.encoder.graph import export_encoder
from streamsplit_compile.encoder.segment import extract
from streamsplit_compile.lowering.artifact_formats import lower
from streamsplit_compile.lowering.real_spectra import odd_spectra, real_spectra
from streamsplit_compile.lowering.tflite_file import Interpreter

WINDOW = 1600


class Spectral(nn.Module):
    """(batch, 1600) -> (batch, width) through what `spectrum` makes of the waveform."""

    def __init__(self, spectrum, width=4):
        super().__init__()
        self.width = width
        self.register_buffer("window", torch.hann_window(200))
        self.spectrum = spectrum

    def forward(self, x):
        return self.spectrum(self, x).flatten(1)[:, : self.width]


def stft(module, x, **options):
    options = {"n_fft": 256, "hop_length": 80, "win_length": 200, "window": module.window, **options}
    return torch.stft(x, **options, return_complex=True)


def frames(x):
    return x.unfold(1, 256, 128)


SPECTRA = {
    "magnitude": lambda module, x: stft(module, x).abs(),
    "power": lambda module, x: stft(module, x, center=False).abs().pow(2),
    "parts": lambda module, x: torch.view_as_real(stft(module, x)).pow(2).sum(-1),
    "real and imaginary": lambda module, x: stft(module, x).real + 2 * stft(module, x).imag,
    "conjugate": lambda module, x: (stft(module, x) * stft(module, x).conj()).real,
    "normalized": lambda module, x: stft(module, x, normalized=True).abs(),
    "two-sided": lambda module, x: stft(module, x, onesided=False).transpose(1, 2).abs(),
    "no window": lambda module, x: stft(module, x, window=None, win_length=256).abs(),
    "short window of ones": lambda module, x: stft(module, x, window=torch.ones(200)).abs(),
    "scaled": lambda module, x: (stft(module, x) * 0.5 / 3).abs(),
    "frames": lambda module, x: torch.fft.rfft(frames(x) * torch.hann_window(256)).abs(),
    "padded frames": lambda module, x: torch.fft.rfft(frames(x), n=512, norm="ortho").abs(),
    "cut frames": lambda module, x: torch.fft.rfft(frames(x), n=128, dim=2).transpose(1, 2).abs(),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_the_same_spectrum_without_complex_numbers(name):
    graph = export_encoder(Spectral(SPECTRA[name]).eval(), WINDOW)
    segment = extract(graph, graph.candidates[0], graph.candidates[-1])
    real = real_spectra(segment)
    window = torch.rand(1, WINDOW, generator=torch.Generator().manual_seed(0)) * 2 - 1
    targets = {str(node.target) for node in real.graph.nodes}
    assert not any("fft" in target or "complex" in target for target in targets)
    torch.testing.assert_close(real(window), segment(window), atol=2e-4, rtol=1e-5)


def test_an_encoder_without_transforms_stays_as_it_is():
    graph = export_encoder(Spectral(lambda module, x: x * 2).eval(), WINDOW)
    segment = extract(graph, graph.candidates[0], graph.candidates[-1])
    assert real_spectra(segment) is segment


@pytest.mark.parametrize(
    ("spectrum", "odd"),
    [
        (lambda module, x: stft(module, x, n_fft=200, win_length=200).abs(), True),
        (lambda module, x: torch.fft.rfft(frames(x), n=300).abs(), True),
        (lambda module, x: torch.fft.rfft(frames(x)[..., :200]).abs(), True),
        (lambda module, x: stft(module, x, n_fft=200, win_length=200).pow(3).abs(), False),
        (lambda module, x: stft(module, x).abs() + torch.fft.rfft(frames(x)).abs().mean(), False),
        (lambda module, x: x * 2, False),
    ],
)
def test_only_transforms_of_odd_lengths_that_can_be_are_written_out(spectrum, odd):
    graph = export_encoder(Spectral(spectrum).eval(), WINDOW)
    segment = extract(graph, graph.candidates[0], graph.candidates[-1])
    assert (odd_spectra(segment) is not segment) is odd


@pytest.mark.integration
@pytest.mark.parametrize("size", [256, 400])
def test_a_transform_of_any_length_is_exact_in_onnx(size):
    import onnxruntime

    def magnitude(module, x):
        return torch.stft(x, size, 80, window=torch.hann_window(size, dtype=x.dtype), return_complex=True).abs()

    graph = export_encoder(Spectral(magnitude, 2000).eval(), WINDOW)
    segment = extract(graph, graph.candidates[0], graph.candidates[-1])
    model = lower("onnx", segment, (1, WINDOW), {"window": torch.hann_window(200).numpy()}).model
    window = torch.rand(1, WINDOW, generator=torch.Generator().manual_seed(0)) * 2 - 1
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": window.numpy()})
    expected = magnitude(None, window.double()).flatten(1)[:, :2000].float()
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=2e-5, rtol=0)


def test_what_has_no_real_form_is_refused_with_its_line():
    def spectrum(module, x):
        return stft(module, x).pow(3).abs()

    graph = export_encoder(Spectral(spectrum).eval(), WINDOW)
    segment = extract(graph, graph.candidates[0], graph.candidates[-1])
    with pytest.raises(UsageError, match=r"node pow_1 \(test_real_spectra.py, line \d+: .*pow.* of complex"):
        real_spectra(segment)


@pytest.mark.integration
def test_an_encoder_with_a_complex_spectrum_runs_in_tflite():
    graph = export_encoder(Spectral(lambda module, x: (stft(module, x).abs() ** 2 + 1e-3).log()).eval(), WINDOW)
    segment = extract(graph, graph.candidates[0], graph.candidates[-1])
    tensors = {name: value.numpy() for name, value in graph.module.state_dict().items()}
    lowered = lower("tflite", segment, (1, WINDOW), tensors)
    window = torch.rand(1, WINDOW, generator=torch.Generator().manual_seed(0)) * 2 - 1
    interpreter = Interpreter(model_content=lowered.model)
    found = interpreter.get_signature_runner()(input=window.numpy())["output"]
    torch.testing.assert_close(torch.from_numpy(found), segment(window), atol=1e-4, rtol=1e-4)
