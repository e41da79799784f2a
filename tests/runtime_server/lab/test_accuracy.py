"""Embeddings by what makes them, against the same parts put together by hand; scores against clips that are made up."""

import ctypes.util

import msgspec
import numpy as np
import pytest
import soundfile
import torch

from runtime_edge.errors import UsageError
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.inference.prefix import Prefix
from runtime_server.lab.accuracy import Answers, Recordings, mixed
from streamsplit_compile.bundle.soundscape import soundscape


@pytest.fixture(scope="module")
def windows(calibrated_bundle):
    front_end = calibrated_bundle.manifest.info.front_end
    heard = 0.9 * soundscape(20, front_end.sample_rate, 8)
    starts = range(0, heard.size - front_end.window_samples + 1, front_end.hop_samples)
    return [heard[start : start + front_end.window_samples].astype(np.float32) for start in starts][:24]


def near(found, expected):
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(np.median((found * expected).sum(1) / lengths))


def test_each_way_of_answering_comes_as_near_to_the_encoder_as_the_bundle_says(
    calibrated_bundle, tiny_encoder, windows
):
    info = calibrated_bundle.manifest.info
    names = {"local", "waveform", "pcm16"} | {cut.name for cut in info.cuts[1:]}
    stated = {f"{early.cut}+exit": early.agreement["onnx-fp32"].cosine_median for early in info.exits}
    for bottleneck in info.bottlenecks:
        stated |= {f"{bottleneck.cut}/{one.width}": one.wire["onnx-fp32"].cosine_median for one in bottleneck.widths}
    found = Answers(calibrated_bundle, "rpi4").of(names | set(stated), windows)
    with torch.inference_mode():
        expected = tiny_encoder.graph.module(torch.from_numpy(np.stack(windows))).numpy()
    assert np.abs(found["local"] - expected).max() < 1e-4
    assert (found["waveform"] == found["pcm16"]).all()
    for name in names - {"local"}:
        assert near(found[name], expected) > 0.97
    for name, agreement in stated.items():
        assert near(found[name], expected) == pytest.approx(agreement, abs=0.1), name
    assert near(found["stem/8"], expected) < near(found["stem"], expected)


def test_what_arrives_goes_through_the_rest_of_the_blocks_and_back(calibrated_bundle, windows):
    prefix = Prefix(calibrated_bundle)
    found = Answers(calibrated_bundle, "rpi4").of(["pcm16"], windows)["pcm16"]
    for window, embedding in zip(windows, found, strict=True):
        heard = np.clip(np.rint(window * 32767), -32768, 32767).astype(np.float32) / 32767
        expected = prefix.embed(heard)
        assert np.abs(embedding - expected).max() < 0.51 * np.abs(expected).max() / 127  # answers are in int8


def test_a_policy_that_chooses_gets_for_each_window_what_made_its_embedding():
    by_name = {"local": np.zeros((5, 1), np.float32), "one+exit": np.ones((5, 1), np.float32)}
    assert mixed(by_name, ["local", "one+exit"])[:, 0].tolist() == [0, 1, 0, 1, 0]


@pytest.fixture
def clips(tmp_path):
    """Ten clips of two classes in two folds, silent."""
    rows = ["filename,class,fold"]
    (tmp_path / "esc10").mkdir()
    for number in range(20):
        soundfile.write(tmp_path / "esc10" / f"{number}.wav", np.zeros(80_000, np.float32), 16_000)
        rows.append(f"{number}.wav,{'ab'[number % 2]},{1 + number // 10}")
    (tmp_path / "esc10" / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


FRONT_END = FrontEndInfo(sample_rate=16_000, window_samples=16_000, hop_samples=8000, details={})


def test_first_and_last_answers_are_told_by_a_head_of_the_whole_encoder(clips, tmp_path):
    pytest.importorskip("sklearn")
    recordings = Recordings(clips, tmp_path, 1, FRONT_END)
    random = np.random.default_rng(0)
    of_class = np.repeat(np.arange(20) % 2, 10)[: len(recordings.windows)] * 2.0 - 1
    whole = random.normal(0, 0.1, (len(of_class), 4)).astype(np.float32)
    whole[:, 0] += of_class
    turned = whole * np.array([-1, 1, 1, 1], np.float32)  # as telling, but to a head of other embeddings all wrong
    found = recordings.score(turned, whole, whole)
    assert (found.probe, found.head, found.head_first, found.clips) == (1.0, 0.0, 1.0, 20)
    one = Recordings(clips, tmp_path, 1, FRONT_END, fold=2).score(turned, whole, whole)
    assert (one.head, one.head_first, one.clips) == (0.0, 1.0, 10)


def test_what_cannot_be_judged_is_said_by_the_option(clips, tmp_path):
    with pytest.raises(UsageError, match="--fold 5: none of the 20 labelled clips is in it"):
        Recordings(clips, tmp_path, 1, FRONT_END, fold=5)
    with pytest.raises(UsageError, match="not a whole number of hops of 7000"):
        Recordings(clips, tmp_path, 1, msgspec.structs.replace(FRONT_END, hop_samples=7000))


@pytest.mark.skipif(ctypes.util.find_library("opus") is None, reason="libopus is not installed")
def test_a_stream_sends_whole_windows_that_do_not_follow_each_other(resnet_bundle):
    heard = 0.9 * soundscape(8, 16_000, 8).astype(np.float32)
    some = [heard[start : start + 16_000] for start in (0, 70_000, 30_000)]
    answers = Answers(resnet_bundle, "rpi4")
    found = answers.of(["opus-16", "local"], some, consecutive=False)
    backwards = answers.of(["opus-16"], some[::-1], consecutive=False)["opus-16"]
    assert np.allclose(found["opus-16"], backwards[::-1], atol=1e-6), "no window hears another one"
    mixed_up = answers.of(["opus-16"], some)["opus-16"]
    assert near(mixed_up, found["local"]) < near(found["opus-16"], found["local"])
