import dataclasses
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.fft
import scipy.optimize
import scipy.signal
import torch

from streamsplit_models.front_end import PRESETS, FrontEnd, resolve_front_end
from streamsplit_models.log_mel import LogMel
from streamsplit_models.upsample import Upsample


@dataclass(frozen=True)
class Published:
    """A preset once more, from its source, in the words of the reference below."""

    rate: int
    samples: int
    fft: int
    win: int
    hop: int
    mels: int
    band: tuple[float, float]
    scale: str
    area: bool = False
    magnitude: bool = False
    centred: bool = False
    symmetric: bool = False
    preemphasis: bool = False
    kaldi_frames: bool = False
    floor: float = 0.0
    added: float = 0.0
    decibel: bool = False
    shift: tuple[float, float] = (0.0, 1.0)


DECIBEL = {"area": True, "centred": True, "floor": 1e-10, "decibel": True}
PUBLISHED = {
    "paper": Published(16_000, 16_000, 512, 400, 160, 128, (80, 8000), "slaney", floor=1e-6),
    "cola": Published(
        16_000, 16_000, 1024, 400, 160, 64, (60, 7800), "kaldi", magnitude=True, floor=1e-5
    ),
    "yamnet": Published(
        16_000, 15_600, 512, 400, 160, 64, (125, 7500), "kaldi", magnitude=True, added=0.001
    ),
    "panns": Published(32_000, 32_000, 1024, 1024, 320, 64, (50, 14_000), "slaney", **DECIBEL),
    "clap": Published(48_000, 48_000, 1024, 1024, 480, 64, (50, 14_000), "slaney", **DECIBEL),
    "efficientat": Published(
        32_000, 32_000, 1024, 800, 320, 128, (0, 15_000), "kaldi",
        centred=True, symmetric=True, preemphasis=True, added=1e-5, shift=(4.5, 5.0),
    ),
    "ast": Published(
        16_000, 16_000, 512, 400, 160, 128, (20, 8000), "kaldi",
        symmetric=True, kaldi_frames=True, floor=1.1920929e-07, shift=(4.2677393, 2 * 4.5689974),
    ),
    "whisper": Published(
        16_000, 480_000, 400, 400, 160, 80, (0, 8000), "slaney", area=True, centred=True, floor=1e-10,
        shift=(0, math.log(10)),
    ),
}  # fmt: skip


def hertz(mel, scale):
    if scale == "slaney":
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)
    return 700 * (10 ** (mel / 2595) - 1)


def reference_mel_bank(rate, fft, mels, band, scale, area=False):
    """(mels, bins); triangles by interpolation in Hz, or in mel for `kaldi`."""
    low, high = (scipy.optimize.brentq(lambda m, f=f: hertz(m, scale) - f, -1, 5000) for f in band)
    edges = np.linspace(low, high, mels + 2)
    axis = np.arange(fft // 2 + 1) * rate / fft
    if scale == "kaldi":
        axis = 2595 * np.log10(1 + axis / 700)
    else:
        edges = np.array([hertz(mel, scale) for mel in edges])
    bank = np.array([np.interp(axis, edges[i : i + 3], [0, 1, 0]) for i in range(mels)])
    return bank * 2 / (edges[2:] - edges[:-2])[:, None] if area else bank


def reference(waveform, p):
    """(samples,) float64 -> (mels, frames), frame by frame with SciPy's FFT."""
    x = waveform
    if p.preemphasis:
        x = scipy.signal.lfilter([1, -0.97], [1], x)[1:]
    window = scipy.signal.get_window("hann", p.win, fftbins=not p.symmetric)
    if p.centred:
        x = np.pad(x, p.fft // 2, mode="reflect")
        side = (p.fft - p.win) // 2
        window = np.pad(window, (side, p.fft - p.win - side))
    columns = []
    for begin in range(0, len(x) - len(window) + 1, p.hop):
        frame = x[begin : begin + len(window)]
        if p.kaldi_frames:
            frame = frame - frame.mean()
            frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        columns.append(np.abs(scipy.fft.rfft(frame * window, p.fft)))
    spectrum = np.array(columns).T ** (1 if p.magnitude else 2)
    bands = reference_mel_bank(p.rate, p.fft, p.mels, p.band, p.scale, p.area) @ spectrum
    bands = np.maximum(bands, p.floor) + p.added
    if p.decibel:
        return 10 * np.log10(bands)
    add, divide = p.shift
    return (np.log(bands) + add) / divide


def noisy_tone(config, batch):
    noise = 0.02 * np.random.default_rng(5).standard_normal((batch, config.window_samples))
    tone = np.sin(2 * np.pi * 440 * np.arange(config.window_samples) / config.sample_rate)
    return (noise + np.linspace(0, 0.05, batch)[:, None] * tone).astype(np.float32)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_preset_matches_an_independent_fft(name):
    config, published = PRESETS[name], PUBLISHED[name]
    assert (config.sample_rate, config.window_samples) == (published.rate, published.samples)
    waveform = noisy_tone(config, 3)

    image = LogMel(config)(torch.from_numpy(waveform)).numpy()

    expected = np.stack([reference(row.astype(np.float64), published) for row in waveform])
    assert image.shape == (3, 1, config.n_mels, config.frames)
    np.testing.assert_allclose(image[:, 0], expected, atol=1e-4, rtol=0)


def test_odd_lengths_and_the_htk_scale_match_torch_stft():
    config = FrontEnd(window_samples=9_999, win_length=401, hop_length=151, center=True, mel_scale="htk")
    waveform = torch.from_numpy(noisy_tone(config, 2)).double()
    stft = torch.stft(waveform, 512, 151, 401, torch.hann_window(401).double(), return_complex=True)
    bank = torch.from_numpy(reference_mel_bank(16_000, 512, 128, (80, 8000), "htk"))
    expected = (bank @ stft.abs().square()).clamp(min=1e-6).log()

    image = LogMel(config)(waveform.float())[:, 0]

    assert image.shape[-1] == config.frames
    torch.testing.assert_close(image.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_silence_and_full_scale_are_finite(name):
    config = PRESETS[name]
    waveform = torch.stack([torch.zeros(config.window_samples), torch.ones(config.window_samples)])
    assert LogMel(config)(waveform).isfinite().all()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_export_with_a_dynamic_batch_is_exact(name, exported_error):
    config = PRESETS[name]
    assert exported_error(LogMel(config), torch.from_numpy(noisy_tone(config, 3))) <= 1e-5


def test_every_band_of_the_paper_sees_a_bin():
    log_mel = LogMel(PRESETS["paper"])
    weights = torch.cat([log_mel.get_buffer(f"bands_{group}").sum(dim=1) for group in range(len(log_mel.spans))])
    assert len(weights) == 128
    assert (weights > 0).all()


def test_nothing_to_train_and_nothing_in_a_checkpoint():
    log_mel = LogMel(PRESETS["paper"])
    assert not list(log_mel.parameters())
    assert not log_mel.state_dict()


@pytest.mark.parametrize(("factor", "samples"), [(2, 4000), (3, 4003)])
def test_upsampling_matches_scipy_away_from_the_ends(factor, samples):
    low_passed = scipy.signal.firwin(255, 0.8)
    noise = np.random.default_rng(0).standard_normal((2, samples))
    waveform = scipy.signal.lfilter(low_passed, [1], noise).astype(np.float32)

    raised = Upsample(factor)(torch.from_numpy(waveform)).numpy()

    expected = scipy.signal.resample(waveform.astype(np.float64), factor * samples, axis=1)
    middle = slice(500 * factor, -500 * factor)
    np.testing.assert_allclose(raised[:, ::factor], waveform, atol=0)
    np.testing.assert_allclose(raised[:, middle], expected[:, middle], atol=2e-3)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_runtime_upsamples_as_torch_does(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    waveform = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 4003)).astype(np.float32))
    module, path = Upsample(2).eval(), tmp_path / "upsample.onnx"
    torch.onnx.export(module, (waveform,), path, input_names=["waveform"], verbose=False)

    (raised,) = onnxruntime.InferenceSession(path).run(None, {"waveform": waveform.numpy()})

    np.testing.assert_allclose(raised, module(waveform).numpy(), rtol=0, atol=1e-7)


def test_upsampled_front_end_is_upsampling_then_the_front_end():
    native = PRESETS["efficientat"]
    raised = dataclasses.replace(native, sample_rate=16_000, window_samples=16_000, upsample=2)
    waveform = torch.from_numpy(noisy_tone(raised, 2))
    expected = LogMel(native)(Upsample(2)(waveform))
    torch.testing.assert_close(LogMel(raised)(waveform), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_round_trip_through_json(name):
    config = PRESETS[name]
    assert FrontEnd.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert resolve_front_end(name) is config
    assert resolve_front_end({"preset": name}) == config


def test_fields_over_a_preset():
    assert resolve_front_end({"preset": "yamnet", "n_mels": 32}) == dataclasses.replace(PRESETS["yamnet"], n_mels=32)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"n_mels": 0}, "n_mels"),
        ({"n_mels": 10**9}, "n_mels"),
        ({"n_fft": 512.0}, "n_fft"),
        ({"n_fft": 511}, "n_fft"),
        ({"win_length": 600}, "win_length"),
        ({"window_samples": 300}, "win_length"),
        ({"hop_length": True}, "hop_length"),
        ({"f_max": 8001.0}, "f_max"),
        ({"f_min": 9000.0}, "f_min"),
        ({"f_min": float("nan")}, "f_min"),
        ({"power": 1.5}, "power"),
        ({"eps": 0.0}, "eps"),
        ({"log": "db"}, "log"),
        ({"center": 1}, "center"),
        ({"mel_scale": ["htk"]}, "mel_scale"),
        ({"mel_scale": "kaldi", "mel_norm": "slaney"}, "mel_norm"),
        ({"colour": "red"}, "colour"),
        ({"preset": "nope"}, "nope"),
        ("nope", "nope"),
    ],
)
def test_a_wrong_field_is_named(fields, named):
    with pytest.raises(ValueError, match=named) as error:
        resolve_front_end(fields)
    assert "\n" not in str(error.value)
