"""Containers that are not those of every day: what a length that does not fit makes of what is read."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runtime_edge.audio import Counters
from runtime_edge.audio.file_decoder import Faults, read_file, recording_length

RATE = 8_000
SECONDS = 3.0
LENGTHS = {"AVR": (26, ">I"), "HTK": (0, ">I"), "MPC2K": (30, "<I"), "WVE": (18, ">I")}
"""Where a length stands, and how it is written."""


def record(path: Path, kind: str, channels: int = 1, subtype: str | None = None) -> bytearray:
    wave = 0.3 * np.sin(np.arange(round(RATE * SECONDS)) * 0.05).astype(np.float32)
    soundfile.write(path, np.stack([wave] * channels, axis=1), RATE, format=kind, subtype=subtype)
    return bytearray(path.read_bytes())


def read(path: Path) -> tuple[float, int]:
    """Seconds read, and files told to be cut short."""
    counters = Counters()
    frames = np.concatenate([block.frames for block in read_file(path, faults=Faults(counters))])
    assert np.abs(frames).max() > 0.25
    assert np.abs(frames[len(frames) // 2 :]).max() > 0.25, "no silence in the place of what is missing"
    return len(frames) / RATE, counters.files_cut_short


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        *((kind, None) for kind in ("AVR", "HTK", "MAT4", "MAT5", "MPC2K", "NIST", "SDS", "SVX", "VOC", "WVE")),
        *(("VOC", subtype) for subtype in ("PCM_U8", "ULAW")),
        *(("NIST", subtype) for subtype in ("ULAW", "PCM_24")),
        *(("SDS", subtype) for subtype in ("PCM_S8", "PCM_24")),
        *((kind, "FLOAT") for kind in ("MAT4", "MAT5")),
    ],
)
def test_a_cut_file_gives_what_is_there_and_is_told(
    tmp_path: Path, kind: str, subtype: str | None, odd: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a"
    data = record(path, kind, subtype=subtype)
    assert read(path) == (pytest.approx(SECONDS, abs=1e-3), 0)
    path.write_bytes(data[: len(data) * 6 // 10 | odd])

    seconds, told = read(path)

    assert seconds == pytest.approx(0.6 * SECONDS, abs=0.1)
    assert told == 1
    assert "its header states" in caplog.text
    # libsndfile leaves out some of a sample dump's last packet when it is asked for all at once
    assert recording_length(path)[0] / RATE == pytest.approx(seconds, abs=5e-3 if kind == "SDS" else 0)


@pytest.mark.parametrize("missing", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        *(("MAT4", subtype) for subtype in ("PCM_16", "FLOAT", "DOUBLE")),
        *(("VOC", subtype) for subtype in ("PCM_U8", "PCM_16", "ULAW")),
        *(("IRCAM", subtype) for subtype in ("PCM_32", "FLOAT")),
        *(("PVF", subtype) for subtype in ("PCM_32",)),
        ("PAF", "PCM_24"),
    ],
)
def test_bytes_that_are_missing_at_the_end_are_told(tmp_path: Path, kind: str, subtype: str, missing: int) -> None:
    path = tmp_path / "a"
    data = record(path, kind, subtype=subtype)
    path.write_bytes(data[:-missing])

    seconds, told = read(path)

    assert seconds == pytest.approx(SECONDS, abs=11 / RATE)
    # of a VOC the last byte is no sample
    assert told == 1 or (kind == "VOC" and seconds >= SECONDS - 1 / RATE)


@pytest.mark.parametrize("kind", ["IRCAM", "PAF", "PVF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_states_no_length_is_told_to_be_cut_where_it_ends_within_a_sample(
    tmp_path: Path, kind: str, channels: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a"
    data = record(path, kind, channels, "PCM_16")
    assert read(path) == (SECONDS, 0)
    path.write_bytes(data[: -2 * channels * 100 - 1])

    assert read(path) == (SECONDS - 101 / RATE, 1)
    assert f"its last {2 * channels - 1} bytes are a part of a sample" in caplog.text


@pytest.mark.parametrize("stated", [0, 1_000, 0xFFFF_FFFF])
@pytest.mark.parametrize("kind", LENGTHS)
def test_a_length_that_does_not_fit_means_to_the_end(tmp_path: Path, kind: str, stated: int) -> None:
    path = tmp_path / "a"
    data = record(path, kind)
    at, form = LENGTHS[kind]
    data[at : at + 4] = struct.pack(form, stated)
    path.write_bytes(data)

    assert read(path) == (SECONDS, 1)


@pytest.mark.parametrize("stated", [0, 1_000, 0xFF_FFFF])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16"])
def test_a_voc_of_another_length_is_read_to_its_end(tmp_path: Path, subtype: str, stated: int) -> None:
    path = tmp_path / "a.voc"
    data = record(path, "VOC", subtype=subtype)
    data[27:30] = struct.pack("<I", stated)[:3]
    path.write_bytes(data)

    assert read(path) == (SECONDS, 1)


def test_a_voc_of_several_blocks_is_read_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.voc"
    data = record(path, "VOC", subtype="PCM_U8")
    samples = data[32:-1]
    path.write_bytes(data[:-1] + b"\2" + struct.pack("<I", len(samples))[:3] + samples + b"\0")

    seconds, told = read(path)

    assert seconds == pytest.approx(2 * SECONDS, abs=0.01)
    assert told == 1
    assert "1 more blocks of audio follow the first: the 4 bytes between them are read as samples" in caplog.text


def test_a_voc_as_sox_writes_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.voc"
    data = record(path, "VOC", subtype="PCM_16")
    stated = int.from_bytes(data[27:30], "little")
    data[27:30] = (stated - 8).to_bytes(3, "little")
    path.write_bytes(data)

    assert read(path) == (SECONDS, 0)


def test_a_sample_dump_of_another_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.sds"
    data = record(path, "SDS")
    data[10:13] = bytes(3)
    path.write_bytes(data)

    assert read(path) == (SECONDS, 1)
