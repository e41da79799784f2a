"""A cut that does not hold is left out with a reason; the encoder is compiled all the same."""

import pytest
import torch
from shapes import Linear, make

from runtime_edge.errors import BackendError, CheckFailed, UsageError
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import from_module

pytestmark = pytest.mark.integration


class Infinite(Linear):
    """A logarithm of zero that is put right afterwards."""

    def forward(self, x):
        y = torch.log(torch.relu(self.first(x)))
        return self.second(y.clamp(-4.0, 4.0))


class Unsayable(Linear):
    def forward(self, x):
        return self.second(torch.special.bessel_j0(self.first(x)))


def compile_(module, cuts, directory):
    notices = []
    options = CompileOptions([load_target("rpi4")], cuts=cuts)
    encoder = from_module("toy", {}, make(module), None)
    return compile_encoder(encoder, options, directory / "bundle", notice=notices.append), notices


def test_a_cut_at_values_that_are_not_finite_is_left_out_with_a_reason(tmp_path):
    bundle, notices = compile_(Infinite, "all", tmp_path)
    names = [cut.name for cut in bundle.manifest.info.cuts]
    assert names == ["waveform", "first", "relu", "clamp", "second"]
    assert notices == ["left out cut log: the encoder gives NaN or infinite values there; check its weights"]
    assert max(bundle.manifest.info.parity["onnx-fp32"].max_abs_error) < 1e-4


def test_a_cut_that_was_asked_for_by_name_is_not_left_out(tmp_path):
    with pytest.raises(CheckFailed, match="cut log: the encoder gives NaN or infinite values there"):
        compile_(Infinite, "first,log", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_no_choice_of_cuts_mends_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"^torch.onnx cannot lower .*node special_bessel_j0 \(test_compiler_cuts.py, line"
    ):
        compile_(Unsayable, "all", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_the_runtime_refuses_costs_its_cut(tmp_path, monkeypatch):
    load = Prefix.load

    def refuse(self, index):
        info = self.bundle.manifest.info
        if info.cuts[index].name == "relu":
            raise BackendError(f"{info.blocks[index]}: not today")
        return load(self, index)

    monkeypatch.setattr(Prefix, "load", refuse)
    bundle, notices = compile_(Linear, "all", tmp_path)
    assert notices == ["left out cut relu: block-02: not today"]
    assert [cut.name for cut in bundle.manifest.info.cuts] == ["waveform", "first", "second"]


def test_an_embedding_that_is_always_the_same_is_warned_about(tmp_path):
    class Deaf(Linear):
        def forward(self, x):
            return super().forward(x * 0)

    _, notices = compile_(Deaf, "1", tmp_path)
    assert "the embedding is the same whatever the waveform; look at the encoder's weights" in notices


def test_a_bundle_without_a_useful_cut_says_why(tmp_path):
    _, notices = compile_(Linear, "1", tmp_path)
    assert [line for line in notices if line.startswith("no cut is worth shipping: the smallest, ")]
