"""Audio files: good, bad and in directories."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runtime_edge.audio import Counters, Windower, open_source
from runtime_edge.audio.audio_files import audio_files, read_file
from runtime_edge.errors import SourceError

RATE = 16_000


def noise(seconds: float, rate: int = RATE, channels: int = 1, seed: int = 0) -> np.ndarray:
    shape = (round(seconds * rate), channels)
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)


def read(path: Path, counters: Counters | None = None, **options: bool) -> np.ndarray:
    return np.concatenate([block.samples for block in open_source(str(path), RATE, counters=counters, **options)])


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [("wav", "PCM_16", 4e-5), ("wav", "FLOAT", 0), ("flac", "PCM_24", 1e-6), ("ogg", "VORBIS", 0.5)],
)
def test_a_mono_file_at_the_right_rate_comes_out_as_written(
    tmp_path: Path, suffix: str, subtype: str, tolerance: float
) -> None:
    path = tmp_path / f"a.{suffix}"
    written = noise(0.75)
    soundfile.write(path, written, RATE, subtype=subtype)

    samples = read(path)

    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, written[:, 0], atol=tolerance)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_rate_and_channel_count_gives_the_same_length_of_mono(tmp_path: Path, rate: int, channels: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(1.5, rate, channels), rate)

    assert abs(read(path).size - 24_000) <= 1


def test_a_short_file_gives_one_window_padded_with_zeros(tmp_path: Path) -> None:
    path = tmp_path / "short.wav"
    written = noise(0.3)
    soundfile.write(path, written, RATE, subtype="FLOAT")

    windows = [window.samples.copy() for window in Windower(16_000, 8_000).windows(open_source(str(path), RATE))]

    assert len(windows) == 1
    np.testing.assert_array_equal(windows[0][:4_800], written[:, 0])
    assert not windows[0][4_800:].any()


def test_nan_in_a_float_file_is_silenced_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    written = noise(0.5)
    written[100:110] = np.nan
    written[200] = 7.0
    soundfile.write(path, written, RATE, subtype="FLOAT")
    counters = Counters()

    samples = read(path, counters)

    assert (counters.bad_samples, counters.clipped_samples) == (10, 1)
    assert not samples[100:110].any()
    assert samples[200] == 1.0


def make_bad(directory: Path, kind: str) -> Path:
    path = directory / f"bad-{kind.replace(' ', '-')}.{'flac' if 'flac' in kind else 'wav'}"
    if kind == "no bytes":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no audio\n" * 100)
    elif kind == "no samples":
        soundfile.write(path, noise(0), RATE)
    elif kind == "header cut":
        soundfile.write(path, noise(1), RATE)
        cut(path, 0.0005)
    elif kind in ("cut wav", "cut flac"):
        soundfile.write(path, noise(1), RATE)
        cut(path, 0.6)
    elif kind == "damaged flac":
        soundfile.write(path, noise(3), RATE)
        data = bytearray(path.read_bytes())
        data[len(data) // 3 : 2 * len(data) // 3] = bytes(len(data) // 3 + 1)[: 2 * len(data) // 3 - len(data) // 3]
        path.write_bytes(data)
    elif kind == "slow rate":
        soundfile.write(path, noise(1), 10)
    return path


BAD = ["no bytes", "text", "no samples", "header cut", "cut wav", "cut flac", "damaged flac", "slow rate"]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, kind: str) -> None:
    path = make_bad(tmp_path, kind)

    with pytest.raises(SourceError) as caught:
        read(path)

    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.count(":") >= 1


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_in_a_directory_is_skipped_counted_and_logged(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    soundfile.write(tmp_path / "a.wav", noise(1), RATE)
    bad = make_bad(tmp_path, kind)
    soundfile.write(tmp_path / "z.wav", noise(1, seed=1), RATE)
    counters = Counters()

    with caplog.at_level(logging.WARNING):
        samples = read(tmp_path, counters)

    assert counters.files_skipped == 1
    assert str(bad) in caplog.text
    assert samples.size >= 32_000
    np.testing.assert_allclose(samples[-16_000:], noise(1, seed=1)[:, 0], atol=4e-5)


def test_a_length_that_does_not_hold_is_noticed_before_the_first_block(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(3), RATE)
    cut(path, 0.9)

    with pytest.raises(SourceError, match="cut short"):
        next(read_file(path))


def test_a_wav_written_to_a_pipe_has_no_length_and_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(1), RATE)
    data = bytearray(path.read_bytes())
    data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)

    assert read(path).size == 16_000


@pytest.mark.parametrize("name", ["missing.wav", "missing/"])
def test_a_missing_path_is_named_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match="no such file") as caught:
        open_source(str(tmp_path / name), RATE)

    assert "missing" in str(caught.value)


def test_an_empty_directory_and_one_with_nothing_readable_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no audio file"):
        read(tmp_path)
    make_bad(tmp_path, "text")
    make_bad(tmp_path, "no bytes")
    with pytest.raises(SourceError, match="none of its 2 audio files"):
        read(tmp_path, loop=True)


def test_a_directory_is_one_stream_in_sorted_order_at_any_depth(tmp_path: Path) -> None:
    names = ["b/2.wav", "a.wav", "b/10.WAV", "c/d/x.flac"]
    for level, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        value = np.full((1_600, 1), 0.1 * (level + 1), np.float32)
        soundfile.write(tmp_path / name, value, RATE)
    (tmp_path / "notes.txt").write_text("no audio")

    samples = read(tmp_path)

    assert [path.name for path in audio_files(tmp_path)] == ["a.wav", "10.WAV", "2.wav", "x.flac"]
    np.testing.assert_allclose(samples[::1_600], [0.2, 0.3, 0.1, 0.4], atol=1e-4)
    np.testing.assert_array_equal(samples, read(tmp_path))


def test_loop_starts_again_without_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    written = noise(0.25)
    soundfile.write(path, written, RATE, subtype="FLOAT")
    source = open_source(str(path), RATE, loop=True)
    blocks = [next(source) for _ in range(9)]
    source.close()

    samples = np.concatenate([block.samples for block in blocks])
    np.testing.assert_array_equal(samples, np.tile(written[:, 0], 3))
    assert not any(block.gap_samples for block in blocks)


@pytest.mark.skipif("SSC_TEST_AUDIO" not in os.environ, reason="SSC_TEST_AUDIO does not name real recordings")
def test_real_recordings_give_nine_windows_each() -> None:
    path = sorted(Path(os.environ["SSC_TEST_AUDIO"], "esc10").rglob("*.flac"))[0]
    whole, rate = soundfile.read(path, dtype="float32")
    assert (rate, whole.shape) == (RATE, (80_000,))

    windows = [w.samples.copy() for w in Windower(16_000, 8_000).windows(open_source(str(path), RATE))]

    np.testing.assert_array_equal(windows, [whole[s : s + 16_000] for s in range(0, 64_001, 8_000)])
