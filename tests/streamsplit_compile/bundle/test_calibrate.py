import logging
import wave

import numpy as np
import pytest
import scipy.signal
import soundfile
from msgspec.structs import replace

from runtime_edge.audio import open_source
from runtime_edge.audio.file_decoder import read_span
from runtime_edge.errors import SourceError, UsageError
from runtime_edge.formats.codec import CutCodec
from runtime_edge.formats.manifest import Calibration, Cut, Parity
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.bundle import recordings
from streamsplit_compile.bundle.calibrate import (
    calibrate_cut,
    calibration_set,
    calibration_text,
    calibration_windows,
    collect_activations,
    encodings,
    wire_bytes,
)

RATE = 4000


def record(path, samples):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.rint(np.asarray(samples) * 32767).astype("<i2").tobytes())


def cut(shape, index=1):
    return Cut(index=index, name="layer", node="relu", shape=shape, bytes={}, agreement={})


@pytest.mark.parametrize("count", [1, 4, 18, 32, 66, 133])
@pytest.mark.parametrize(("rate", "window"), [(16000, 16000), (16000, 15360), (11025, 11025), (44100, 42336)])
def test_the_synthetic_windows_are_as_many_as_asked_for_at_any_rate(rate, window, count):
    windows, said = calibration_windows(None, rate, window, window // 2, count, 0)
    assert windows.shape == (count, window)
    assert windows.dtype == np.float32
    assert (said.source, said.windows, said.seed) == ("soundscapes", count, 0)


def test_synthetic_windows_overlap_by_the_hop_and_follow_the_seed():
    windows, _ = calibration_windows(None, RATE, 1000, 400, 5, 3)
    assert np.array_equal(windows[0, 400:], windows[1, :600])
    assert np.array_equal(windows, calibration_windows(None, RATE, 1000, 400, 5, 3)[0])
    assert not np.array_equal(windows, calibration_windows(None, RATE, 1000, 400, 5, 4)[0])


def test_recordings_are_sampled_from_first_to_last_as_the_seed_says(tmp_path):
    record(tmp_path / "a.wav", np.arange(5000) / 10_000)
    record(tmp_path / "b.wav", np.arange(5000, 10_000) / 10_000)
    chosen, said = calibration_windows(tmp_path, RATE, 500, 250, 5, 0)
    assert said.source == "recordings"
    assert said.windows == 5
    starts = chosen[:, 0] * 10_000
    np.testing.assert_allclose(chosen, chosen[:, :1] + np.arange(500) / 10_000, atol=1e-4)
    assert list(np.floor(starts / 1950 + 0.01)) == [0, 1, 2, 3, 4]
    again, other = (calibration_windows(tmp_path, RATE, 500, 250, 5, seed)[0] for seed in (0, 1))
    assert np.array_equal(chosen, again)
    assert not np.array_equal(chosen, other)


def test_a_window_of_another_rate_is_what_resampling_the_whole_gives(tmp_path):
    sound = scipy.signal.lfilter(*scipy.signal.butter(4, 0.2), np.random.default_rng(0).normal(0, 0.2, 3 * RATE))
    record(tmp_path / "a.wav", sound[:RATE])
    record(tmp_path / "b.wav", sound[RATE:])
    target = 3000
    found, _ = calibration_windows(tmp_path, target, 512, 100, 200, 0)
    whole = np.concatenate([block.samples for block in open_source(str(tmp_path), target)])
    for index, window in enumerate(found):
        np.testing.assert_allclose(window, whole[index * 100 : index * 100 + 512], atol=1e-3)


def test_only_what_was_chosen_is_read(tmp_path, monkeypatch):
    for name in "abcd":
        record(tmp_path / f"{name}.wav", np.zeros(60 * RATE))
    read = []
    monkeypatch.setattr(
        recordings, "read_span", lambda path, start, stop: (read.append(stop - start), read_span(path, start, stop))[1]
    )
    calibration_windows(tmp_path, RATE, 1000, 500, 3, 0)
    assert sum(read) == 3000


def test_damaged_recordings_are_used_up_to_there(tmp_path, caplog):
    record(tmp_path / "a.wav", np.full(1000, 0.25))
    record(tmp_path / "b.wav", np.full(1000, 0.25))
    (tmp_path / "b.wav").write_bytes((tmp_path / "b.wav").read_bytes()[:-500])
    soundfile.write(tmp_path / "c.flac", np.full(50_000, 0.25), RATE)
    data = (tmp_path / "c.flac").read_bytes()
    (tmp_path / "c.flac").write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    (tmp_path / "d.wav").write_text("no recording")
    (tmp_path / ".e.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    windows, said = calibration_windows(tmp_path, RATE, 500, 500, 200, 0)
    assert 20 < len(windows) < 80
    assert said.windows == len(windows)
    np.testing.assert_allclose(windows, 0.25, atol=1e-3)
    assert [record.message.partition(": ")[0] for record in caplog.records if "d.wav" in record.message]
    for name in ("a.wav", "b.wav", "c.flac"):
        (tmp_path / name).unlink()
    with pytest.raises(SourceError, match=r"d\.wav: cannot be decoded"):
        calibration_windows(tmp_path, RATE, 500, 500, 9, 0)


def test_fewer_windows_are_taken_where_there_are_no_more(tmp_path):
    record(tmp_path / "a.wav", np.linspace(-0.5, 0.5, 1200))
    windows, said = calibration_windows(tmp_path, RATE, 500, 250, 16, 0)
    assert windows.shape == (3, 500)
    assert said.windows == 3


def test_a_directory_without_audio_is_refused(tmp_path):
    with pytest.raises((UsageError, SourceError), match=str(tmp_path)):
        calibration_windows(tmp_path, RATE, 500, 250, 16, 0)
    with pytest.raises((UsageError, SourceError), match="missing"):
        calibration_windows(tmp_path / "missing", RATE, 500, 250, 16, 0)


def test_activations_are_collected_for_every_cut(small_bundle):
    windows = np.random.default_rng(0).uniform(-1, 1, (3, 1024)).astype(np.float32)
    prefix = Prefix(small_bundle)
    collected = collect_activations(prefix, windows)
    cuts = small_bundle.manifest.info.cuts
    assert [values.shape for values in collected] == [(3, *item.shape) for item in cuts]
    for index, window in enumerate(windows):
        prefix.start(window)
        for values, item in zip(collected, cuts, strict=True):
            assert np.array_equal(values[index], prefix.advance(item.index))


@pytest.mark.parametrize(("shape", "axis"), [((1, 3, 4, 5), 1), ((1, 7, 6), 2), ((1, 9), 1)])
def test_scales_hold_every_value_that_was_seen(shape, axis):
    rng = np.random.default_rng(0)
    activations = (
        rng.normal(size=(20, *shape))
        * rng.uniform(0.01, 100, shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    ).astype(np.float32)
    calibrated = calibrate_cut(cut(shape), activations)
    assert calibrated.int8.axis == axis
    codec = CutCodec(calibrated, "int8")
    scale, _ = calibrated.int8.arrays(shape)
    step = scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    for activation in activations:
        assert (np.abs(codec.decode(*codec.encode(activation)) - activation) <= 1.001 * step).all()


def test_a_channel_that_is_always_zero_is_no_problem():
    activations = np.zeros((4, 1, 3, 2, 2), np.float32)
    activations[:, :, 0] = 1.0
    calibrated = calibrate_cut(cut((1, 3, 2, 2)), activations)
    codec = CutCodec(calibrated, "int8")
    np.testing.assert_allclose(codec.decode(*codec.encode(activations[0])), activations[0], atol=1e-6)


def test_bytes_are_medians_with_compression():
    rng = np.random.default_rng(0)
    activations = rng.normal(size=(3, 1, 1000)).astype(np.float32)
    activations[1:] = 0.0
    assert wire_bytes(cut((1, 1000)), "float32", activations) < 100
    assert wire_bytes(cut((1, 1000)), "float32", activations[:1]) > 3000
    assert wire_bytes(cut((1, 1000)), "float16", rng.normal(size=(3, 1, 1000)).astype(np.float32)) <= 2000


def test_the_waveform_ships_as_pcm_and_activations_as_int8():
    waveform = calibrate_cut(cut((1, 50), 0), np.zeros((2, 1, 50), np.float32))
    assert waveform.int8 is None
    assert list(waveform.bytes) == ["float32", "pcm16"] == list(encodings(waveform))
    assert list(calibrate_cut(cut((1, 50)), np.zeros((2, 1, 50), np.float32)).bytes) == ["float32", "float16", "int8"]


def test_what_is_measured_calibrated_nothing(tmp_path):
    record(tmp_path / "a.wav", np.arange(5000) / 10_000)
    record(tmp_path / "b.wav", np.arange(5000, 10_000) / 10_000)
    found = calibration_set(tmp_path, RATE, 500, 250, 5, 0)
    assert np.array_equal(found.windows, calibration_windows(tmp_path, RATE, 500, 250, 5, 0)[0])
    assert found.measured is found.unseen
    assert found.unseen.shape == (5, 500)
    seen, unseen = ({round(value) for value in (part * 10_000).ravel()} for part in (found.windows, found.unseen))
    assert seen.isdisjoint(unseen), "not one sample is in both"
    assert max(unseen) - min(unseen) > 8000, "spread over all"
    assert found.said.source == "recordings"


def test_without_recordings_what_is_measured_calibrated_nothing_either():
    found = calibration_set(None, RATE, 500, 250, 5, 3)
    assert np.array_equal(found.windows, calibration_windows(None, RATE, 500, 250, 5, 3)[0])
    assert np.array_equal(found.measured, calibration_windows(None, RATE, 500, 250, 5, 4)[0])
    assert not np.isin(found.measured[:, ::50], found.windows).any()


def test_recordings_too_short_for_others_are_measured_on_what_calibrates_and_say_so(tmp_path):
    record(tmp_path / "a.wav", np.linspace(-0.5, 0.5, 1200))
    found = calibration_set(tmp_path, RATE, 500, 250, 16, 0)
    assert found.unseen is None
    assert found.measured is found.windows
    assert found.said.source == "recordings, too few to measure on others"


@pytest.mark.parametrize(
    ("source", "measured", "text"),
    [
        ("recordings", 12, "calibrated on 16 windows of recordings; errors and agreement are of 12 others"),
        ("recordings", 0, "calibrated on 16 windows of recordings; nothing was measured"),
        ("799 windows of recordings", 16, "calibrated and measured on the same 16 windows: recordings"),
        (
            "soundscapes",
            12,
            "calibrated on 16 windows of a synthesised soundscape; errors and agreement are of 12 others",
        ),
        ("synthetic soundscape", 16, "calibrated and measured on the same 16 windows: synthetic soundscape"),
        ("synthetic soundscape", 0, "nothing was measured; calibrated on 16 windows: synthetic soundscape"),
    ],
)
def test_people_are_told_one_true_number(small_bundle, source, measured, text):
    info = small_bundle.manifest.info
    parity = {"onnx-fp32": Parity(windows=measured, cuts=[])} if measured else {}
    told = replace(info, calibration=Calibration(source=source, windows=16, seed=0), parity=parity)
    assert calibration_text(told) == text


def test_what_cannot_be_read_is_told_once_though_the_recordings_are_read_twice(tmp_path, caplog):
    record(tmp_path / "a.wav", np.linspace(-0.5, 0.5, 12_000))
    (tmp_path / "b.wav").write_bytes(b"no audio at all, only text in here")
    (tmp_path / "c.wav").symlink_to(tmp_path / "away" / "c.wav")
    with caplog.at_level(logging.WARNING):
        calibration_set(tmp_path, RATE, 500, 250, 5, 0)
    assert [record.getMessage().partition(": cannot")[0] for record in caplog.records] == [
        f"skipped: {tmp_path / 'b.wav'}",
        f"skipped: {tmp_path / 'c.wav'}",
    ]
    assert f"(a link to {tmp_path / 'away' / 'c.wav'}, which is not there)" in caplog.text
