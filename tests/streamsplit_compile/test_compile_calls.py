"""`compile` and `advise` as a program calls them."""

import numpy as np
import pytest
import torch
from toys import Tiny

import runtime_edge
import streamsplit_compile
from runtime_edge.errors import SignatureError, UsageError
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.formats.minisign import read_public_key, write_key_pair

pytestmark = pytest.mark.integration


def test_a_module_becomes_a_bundle_that_embeds_as_it_does(tmp_path, signing_key):
    public = write_key_pair(signing_key, tmp_path / "key")
    said, trained = [], Tiny().train()
    bundle = streamsplit_compile.compile(
        trained, tmp_path / "bundle", targets=["rpi4"], cuts="stem,down", windows=2, key=tmp_path / "key", generation=3,
        progress=lambda what, done, total: said.append(what),
    )  # fmt: skip
    info = bundle.manifest.info
    assert [cut.name for cut in info.cuts] == ["waveform", "stem", "down", "div"]
    assert (list(info.targets), info.generation, info.encoder.id) == (["rpi4"], 3, "Tiny")
    assert "choosing cuts" in said
    assert all(part.training for part in trained.modules()), "whoever trains it goes on"
    open_bundle(tmp_path / "bundle", read_public_key(public))

    sound = np.random.default_rng(0).uniform(-1, 1, 1024).astype(np.float32)
    with torch.inference_mode():
        expected = Tiny()(torch.from_numpy(sound[None])).numpy()
    np.testing.assert_allclose(runtime_edge.open(str(bundle.path)).embed(sound), expected, atol=1e-4, rtol=0)


def test_a_file_is_compiled_as_the_command_does_it(tmp_path, tiny_file, small_bundle):
    options = {"targets": ["rpi4", "m2"], "cuts": "stem,down,residual", "windows": 4, "factory": "toys:Tiny"}
    bundle = streamsplit_compile.compile(str(tiny_file), tmp_path / "bundle", **options)
    ours, theirs = bundle.manifest.info, small_bundle.manifest.info
    assert (ours.cuts, ours.blocks, ours.self_test) == (theirs.cuts, theirs.blocks, theirs.self_test)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"targets": "rpi4,m2"}, r"targets 'rpi4,m2': give a list, such as \['rpi4', 'm2'\]"),
        ({"targets": ["vax"]}, "no target 'vax'"),
        ({"formats": ["coreml"]}, r"formats \['coreml'\]: expected some of onnx, tflite"),
        ({"precisions": []}, r"precisions \[\]: expected some of fp32"),
        ({"bottlenecks": True}, "bottlenecks: they are trained on recordings; give calibrate"),
        ({"windows": 0}, "windows 0: must be at least 1"),
        ({"seed": -1}, "seed -1: must be at least 0"),
        ({"generation": 0}, "generation 0: must be at least 1"),
        ({"cuts": "nowhere"}, "no cut 'nowhere'"),
        ({"factory": "toys:Tiny"}, "are for an encoder's file; leave them out for a module"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(tmp_path, wrong, words):
    with pytest.raises(UsageError, match=words):
        streamsplit_compile.compile(Tiny(), tmp_path / "bundle", **wrong)
    assert not (tmp_path / "bundle").exists()


def test_a_key_that_is_none_is_refused(tmp_path):
    (tmp_path / "key").write_text("text")
    with pytest.raises(SignatureError, match="key"):
        streamsplit_compile.compile(Tiny(), tmp_path / "bundle", key=tmp_path / "key")


def test_advice_is_given_for_all_targets_or_some(small_bundle):
    both = streamsplit_compile.advise(small_bundle.path)
    assert [(one.target, one.link) for one in both] == [("m2", "wifi"), ("rpi4", "wifi")]
    (one,) = streamsplit_compile.advise(small_bundle, ["rpi4"], link="lte")
    assert one.sentence().startswith("rpi4 over lte: ")
    with pytest.raises(UsageError, match="targets 'rpi4': give a list"):
        streamsplit_compile.advise(small_bundle, "rpi4")
