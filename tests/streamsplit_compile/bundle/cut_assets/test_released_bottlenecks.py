"""What a release does with bottlenecks: carried on, or fitted anew to what devices sent."""

import dataclasses

import numpy as np
import pytest
import torch
from toys import Tiny

from runtime_edge.formats.bundle import open_bundle
from runtime_edge.formats.model_id import model_number
from runtime_edge.inference.cut_assets.loaded import self_test
from runtime_edge.inference.prefix import Prefix
from runtime_server.lab.accuracy import Answers
from runtime_server.suffix.generations import cut_model
from streamsplit_compile.bottleneck.hiding import LabelledWindows
from streamsplit_compile.bundle.calibrate import calibration_set_for
from streamsplit_compile.bundle.compiler import compile_encoder, recompile
from streamsplit_compile.bundle.measure import ArrivedWindows, Reference
from streamsplit_compile.bundle.soundscape import soundscape
from streamsplit_compile.encoder.encoders import load_encoder

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The tiny one with embeddings around 0, which tell every difference."""
    whole, path = Tiny(), tmp_path_factory.mktemp("centred") / "tiny.pt"
    with torch.no_grad():
        heard = windows_of(0.9 * soundscape(30, 4000, 7), 64)[:, None]
        middle = whole.residual(whole.down(whole.stem(heard))).mean((0, 2))
        whole.head.bias.copy_(-whole.head.weight @ middle)
    torch.save(whole.state_dict(), path)
    return load_encoder(path, "toys:Tiny")


@pytest.fixture(scope="module")
def plain(encoder, options, tmp_path_factory):
    """One variant, closed form."""
    single = dataclasses.replace(options, formats=("onnx",), precisions=("fp32",))
    return compile_encoder(encoder, single, tmp_path_factory.mktemp("bundles") / "plain")


def windows_of(audio, count):
    """(count, 1024) of audio, one after the other."""
    return torch.from_numpy(np.stack(np.split(audio[: count * 1024].astype(np.float32), count)))


def whistles(count, seed):
    """Loud tones near the highest frequency there is, which no soundscape has."""
    random = np.random.default_rng(seed)
    times = np.arange(1024) / 4000
    tones = [np.sin(2 * np.pi * random.uniform(1500, 1950) * times) for _ in range(count)]
    return torch.from_numpy(np.stack(tones).astype(np.float32) * random.uniform(0.3, 1, (count, 1)).astype(np.float32))


def released(bundle, encoder, path, arrived, tensors=None):
    tensors = encoder.tensors if tensors is None else tensors
    calibration = calibration_set_for(bundle.manifest.info, None)
    segments = cut_model(encoder.graph, bundle, tensors).segments
    recompile(
        bundle, tensors, path, generation=2, windows=calibration.windows,
        reference=Reference(segments, calibration.unseen, arrived=arrived),
    )  # fmt: skip
    return open_bundle(path)


def files(bundle):
    return {info.cut: info.decoder.file for info in bundle.manifest.info.bottlenecks}


def test_sound_that_none_was_fitted_to_is_fitted_to_at_the_next_release(plain, encoder, tmp_path):
    heard = [window.numpy() for window in whistles(24, 9)]
    arrived = ArrivedWindows({0: whistles(64, 1)}, {0: whistles(16, 2)})
    after = released(plain, encoder, tmp_path / "after", arrived)
    carried = released(plain, encoder, tmp_path / "carried", None)

    assert files(carried) == files(plain)
    assert set(files(after)) == {"stem", "down"}
    assert set(files(after).values()).isdisjoint(files(plain).values())
    assert model_number(after.manifest) != model_number(carried.manifest)
    assert self_test(Prefix(after)) < 1e-3
    assert after.verify_assets() > 0
    # On windows that nobody was fitted to, through the wire: nearer to the encoder's embedding.
    for cut in ("stem", "down"):
        width = after.manifest.bottleneck(cut).widths[0].width
        names = [f"{cut}/{width}", "local"]
        gained = []
        for bundle in (carried, after):
            found = Answers(bundle, "rpi4").of(names, heard)
            gained.append(np.median((found[names[0]] * found["local"]).sum(1)))
        assert gained[1] > gained[0]


def test_what_arrives_behind_the_waveform_is_fitted_to_where_it_is_whole(plain, encoder, tmp_path):
    """Activations at `stem` tell nothing of the waveform, and all of `stem` and `down`."""
    segments = cut_model(encoder.graph, plain, encoder.tensors).segments
    with torch.inference_mode():
        at_stem = [segments[0](whistles(count, seed)) for count, seed in ((64, 1), (16, 2))]
    arrived = ArrivedWindows({1: at_stem[0]}, {1: at_stem[1]})
    whole = ArrivedWindows({0: whistles(64, 1)}, {0: whistles(16, 2)})
    for cut in (1, 2):
        found, expected = (ArrivedWindows.at(cut, one.fit, segments) for one in (arrived, whole))
        assert torch.allclose(found, expected, atol=1e-5)
    assert not len(ArrivedWindows.at(0, arrived.fit, segments))
    # It is measured on the calibration's windows then, where a fit to whistles may cost no width.
    after = released(plain, encoder, tmp_path / "after", arrived)
    assert after.manifest.widths == plain.manifest.widths


@pytest.mark.parametrize(
    ("fit", "unseen"),
    [(64, 0), (8, 16), (0, 16)],
    ids=["nothing to judge by", "too few to fit to", "nothing to fit to"],
)
def test_without_enough_of_either_the_one_before_stays(plain, encoder, tmp_path, fit, unseen):
    def some(count, seed):
        return {0: whistles(count, seed)} if count else {}

    after = released(plain, encoder, tmp_path / "after", ArrivedWindows(some(fit, 1), some(unseen, 2)))
    assert files(after) == files(plain)


def test_the_one_before_stays_where_a_fit_anew_is_no_better(plain, encoder, tmp_path):
    same = windows_of(0.9 * soundscape(120, 4000, 3), 256)
    after = released(plain, encoder, tmp_path / "after", ArrivedWindows({0: same[:40]}, {0: same[200:240]}))
    assert files(after) == files(plain)


def test_trained_ones_are_trained_on(encoder, options, tmp_path):
    single = dataclasses.replace(options, formats=("onnx",), precisions=("fp32",), bottleneck_steps=2)
    trained = compile_encoder(encoder, single, tmp_path / "trained")
    arrived = ArrivedWindows({0: whistles(64, 1)}, {0: whistles(16, 2)}, bottleneck_steps=200)
    after = released(trained, encoder, tmp_path / "after", arrived)
    changed = [info for info in after.manifest.info.bottlenecks if files(after)[info.cut] != files(trained)[info.cut]]
    assert changed
    assert {(info.fitted_by, info.steps) for info in changed} == {("training", 202)}


def test_those_that_hide_something_are_never_fitted_anew(encoder, options, tmp_path):
    speech = LabelledWindows(whistles(64, 5).numpy(), {"words": np.arange(64) % 2})
    single = dataclasses.replace(
        options, formats=("onnx",), precisions=("fp32",), bottleneck_steps=2, hidden=speech, cuts="down"
    )
    hiding = compile_encoder(encoder, single, tmp_path / "hiding")
    arrived = ArrivedWindows({0: whistles(64, 1)}, {0: whistles(16, 2)}, bottleneck_steps=200)

    after = released(hiding, encoder, tmp_path / "after", arrived)

    assert [info.hides for info in hiding.manifest.info.bottlenecks] == [("words",)]
    assert files(after) == files(hiding)
