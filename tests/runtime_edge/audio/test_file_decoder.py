"""Audio files: good, bad and in directories."""

from __future__ import annotations

import itertools
import logging
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runtime_edge.audio import Counters, Windower, open_source
from runtime_edge.audio.file_decoder import read_span, recording_length
from runtime_edge.base.text import shown
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
    path = directory / f"bad-{kind.replace(' ', '-')}.wav"
    if kind == "no bytes":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no audio\n" * 100)
    elif kind == "no samples":
        soundfile.write(path, noise(0), RATE)
    elif kind == "header cut":
        soundfile.write(path, noise(1), RATE)
        cut(path, 0.0005)
    elif kind == "slow rate":
        soundfile.write(path, noise(1), 10)
    elif kind == "not utf-8":
        path = directory / os.fsdecode(b"M\xfcnchen.wav")
        path.write_bytes(b"")
    elif kind == "flac cut":
        path = directory / "bad.flac"
        soundfile.write(path, noise(1), RATE)
        cut(path, 0.003)
    elif kind == "unread format":
        path = directory / "a.m4a"
        path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(1000))
    return path


BAD = ["no bytes", "text", "no samples", "header cut", "flac cut", "slow rate", "not utf-8", "unread format"]
NAMED = {"no bytes": "it is empty", "text": "it holds text: ", "unread format": "it holds MP4: "}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, kind: str) -> None:
    path = make_bad(tmp_path, kind)

    with pytest.raises(SourceError) as caught:
        read(path)

    message = str(caught.value)
    assert shown(path) in message
    assert "\n" not in message
    assert "object at" not in message
    assert message.count(":") >= 1
    assert NAMED.get(kind, "") in message


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
    assert shown(bad) in caplog.text
    assert samples.size >= 32_000
    np.testing.assert_allclose(samples[-16_000:], noise(1, seed=1)[:, 0], atol=4e-5)


KINDS = {
    "wav": ("WAV", "PCM_16"), "wave": ("WAV", "IMA_ADPCM"), "w64": ("W64", "PCM_16"), "rf64": ("RF64", "FLOAT"),
    "aiff": ("AIFF", "PCM_24"), "au": ("AU", "PCM_16"), "caf": ("CAF", "PCM_16"), "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III"),
}  # fmt: skip


def record(path: Path, seconds: float = 8.0) -> np.ndarray:
    """Write noise in the format of the suffix; returns what is read of it."""
    kind, subtype = KINDS[path.suffix[1:]]
    soundfile.write(path, noise(seconds), RATE, format=kind, subtype=subtype)
    counters = Counters()
    samples = read(path, counters)
    assert samples.size >= seconds * RATE
    assert counters.files_cut_short == 0
    return samples


@pytest.mark.parametrize(
    ("suffix", "whole"),
    [(suffix, whole) for suffix in KINDS for whole in (True, False) if suffix not in ("mp3", "wave") or not whole],
)
def test_a_file_that_is_cut_gives_what_comes_before_and_this_is_said_and_counted(
    tmp_path: Path, suffix: str, whole: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path, counters = tmp_path / f"a.{suffix}", Counters()
    samples = record(path)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size - 1 if whole else size * 6 // 10])

    found = read(path, counters)

    least = 0.8 if whole else 0.45
    assert least * samples.size < found.size < (1.0 if whole else 0.7) * samples.size
    common = found.size - 4_000  # a lossy decoder's last frame leans on the next one
    np.testing.assert_allclose(found[:common], samples[:common], atol=1e-4)
    assert counters.files_cut_short == 1
    assert [record.message.partition(": ")[0] for record in caplog.records] == [str(path)]


def put(path: Path, at: int, data: bytes) -> None:
    whole = bytearray(path.read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)


def length_field(path: Path) -> tuple[int, str, int]:
    """Where the length of the audio stands in a file, how it is written, and how long the rest of its chunk is."""
    data = path.read_bytes()
    if path.suffix == ".au":
        return 8, ">I", 0
    if path.suffix == ".aiff":
        return data.index(b"SSND") + 4, ">I", 8
    if path.suffix == ".caf":
        return data.index(b"data") + 4, ">q", 4
    if path.suffix == ".w64":
        return data.index(b"data") + 16, "<q", 24
    if path.suffix == ".rf64":
        return data.index(b"ds64") + 16, "<q", 0
    return data.index(b"data") + 4, "<I", 0


@pytest.mark.parametrize("suffix", ["wav", "w64", "rf64", "aiff", "au", "caf"])
@pytest.mark.parametrize("stated", [0, 1_000, 255_998, 256_001, 2_000_000_000])
def test_a_length_that_does_not_fit_means_to_the_end_of_the_file(
    tmp_path: Path, suffix: str, stated: int, caplog: pytest.LogCaptureFixture
) -> None:
    path, counters = tmp_path / f"a.{suffix}", Counters()
    samples = record(path)
    at, form, more = length_field(path)
    put(path, at, struct.pack(form, stated + more))

    np.testing.assert_array_equal(read(path, counters), samples)
    assert counters.files_cut_short == 1
    assert "cut short or never closed, read to its end" in caplog.text


def test_a_length_of_half_a_sample_less_costs_no_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    samples = record(path)
    put(path, 40, struct.pack("<I", 255_999))

    np.testing.assert_array_equal(read(path), samples)


@pytest.mark.parametrize("riff", [0, 8, 36, 0xFFFFFFFF])
def test_a_recorder_that_lost_power_leaves_a_wav_that_is_read(tmp_path: Path, riff: int) -> None:
    path = tmp_path / "a.wav"
    samples = record(path)
    put(path, 4, struct.pack("<I", riff))
    put(path, 40, bytes(4))

    np.testing.assert_array_equal(read(path), samples)


def test_a_wav_beyond_4_gib_is_read_beyond_them(tmp_path: Path) -> None:
    path, held = tmp_path / "a.wav", (1 << 32) + 192_000
    header = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 192_036, b"WAVE", b"fmt ", 16, 1, 1, 48_000, 96_000, 2, 16)
    with path.open("wb") as file:
        file.write(header + struct.pack("<4sI", b"data", held & 0xFFFFFFFF))
        file.truncate(44 + held)  # sparse

    assert recording_length(path) == (held // 2, 48_000)
    counters = Counters()
    blocks = open_source(str(path), 48_000, counters=counters)
    for _ in range(50):  # 5 s; the length that has wrapped is 2 s
        next(blocks)
    blocks.close()
    assert counters.files_cut_short == 1


@pytest.mark.parametrize("tail", [b"LIST\x04\0\0\0INFO", b"guan\x06\0\0\0abcdef", b"TAG" + bytes(125), bytes(3)])
def test_chunks_and_tags_behind_the_audio_are_no_audio(tmp_path: Path, tail: bytes) -> None:
    path, counters = tmp_path / "a.wav", Counters()
    samples = record(path)
    path.write_bytes(path.read_bytes() + tail)

    np.testing.assert_array_equal(read(path, counters), samples)
    assert counters.files_cut_short == 0


@pytest.mark.parametrize("stated", [0, 2_560, (1 << 36) - 1])
def test_a_flac_is_read_to_its_last_sample_whatever_it_states(tmp_path: Path, stated: int) -> None:
    path, counters = tmp_path / "a.flac", Counters()
    samples = record(path)
    low = path.read_bytes()[21] & 0xF0
    put(path, 21, bytes([low | stated >> 32]) + (stated & 0xFFFFFFFF).to_bytes(4, "big"))

    np.testing.assert_array_equal(read(path, counters), samples)
    assert counters.files_cut_short == (stated != 0), "one from a pipe states nothing, which is no fault"
    if stated == 0:
        assert recording_length(path) == (samples.size, RATE)
        np.testing.assert_array_equal(read_span(path, 70_000, 70_500)[:, 0], samples[70_000:70_500])


@pytest.mark.parametrize("suffix", ["wav", "w64", "rf64", "aiff", "au", "caf", "mp3"])
def test_of_two_recordings_in_one_file_both_are_read_and_this_is_told(tmp_path: Path, suffix: str) -> None:
    path, counters = tmp_path / f"a.{suffix}", Counters()
    samples = record(path)
    path.write_bytes(2 * path.read_bytes())

    assert abs(read(path, counters).size - 2 * samples.size) < 5_000
    assert counters.files_cut_short == 1


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_a_second_ogg_stream_is_told_and_counted(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    path, other, counters = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}", Counters()
    samples = record(path)
    record(other, 2.0)
    path.write_bytes(path.read_bytes() + other.read_bytes())

    np.testing.assert_array_equal(read(path, counters), samples)
    assert counters.files_cut_short == 1
    assert "another stream follows the first" in caplog.text


def test_damage_in_the_middle_ends_a_file_there_and_is_told_once_however_often_it_is_played(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, counters = tmp_path / "a.flac", Counters()
    samples = record(path)
    put(path, path.stat().st_size // 2, bytes(path.stat().st_size // 4))
    source = open_source(str(path), RATE, loop=True, counters=counters)

    found = list(itertools.islice(source, 100))  # 10 s
    source.close()

    assert found[0].begins is not None
    assert sum(block.begins is not None for block in found) > 1
    first = next(number for number, block in enumerate(found[1:], 1) if block.begins is not None)
    heard = np.concatenate([block.samples for block in found[:first]])
    assert 0.4 * samples.size < heard.size < 0.6 * samples.size
    np.testing.assert_array_equal(heard, samples[: heard.size])
    assert counters.files_cut_short == 1
    assert "damaged after" in caplog.text
    assert len(caplog.records) == 1


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


def test_a_directory_is_played_in_sorted_order_at_any_depth(tmp_path: Path) -> None:
    names = ["b/2.wav", "a.wav", "b/10.WAV", "c/d/x.flac"]
    for level, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        value = np.full((1_600, 1), 0.1 * (level + 1), np.float32)
        soundfile.write(tmp_path / name, value, RATE)

    samples = read(tmp_path)

    np.testing.assert_allclose(samples[::1_600], [0.2, 0.3, 0.1, 0.4], atol=1e-4)
    np.testing.assert_array_equal(samples, read(tmp_path))


def test_a_file_whose_name_is_not_utf_8_is_read_and_named(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"M\xfcnchen.wav")
    with path.open("wb") as file:
        soundfile.write(file, noise(1), RATE, format="WAV")

    (begins,) = [block.begins for block in open_source(str(path), RATE) if block.begins is not None]

    assert begins.name == f"{tmp_path}/M\\xfcnchen.wav"


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
