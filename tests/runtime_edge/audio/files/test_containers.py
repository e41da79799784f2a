"""Patched files and chunks; lengths that do not fit stand in tests of what is read."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_edge.audio import Counters
from runtime_edge.audio.file_decoder import Faults, read_file
from runtime_edge.audio.files.containers import Container, PatchedFile, chunk, examine

RARE = ("AVR", "HTK", "MAT4", "MAT5", "MPC2K", "NIST", "SDS", "SVX", "VOC", "WVE", "XI")


@settings(max_examples=50, deadline=None)
@given(
    patches=st.dictionaries(st.integers(0, 60), st.binary(min_size=1, max_size=9), max_size=3), size=st.integers(1, 20)
)
def test_a_patched_file_reads_as_if_it_had_been_written_so(
    patches: dict[int, bytes], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, data = tmp_path_factory.mktemp("patched") / "a", bytes(range(100, 160))
    path.write_bytes(data)
    expected = bytearray(data)
    for at, patch in patches.items():
        for place, byte in enumerate(patch, at):
            if place < len(expected):
                expected[place] = byte

    with PatchedFile(path, patches) as file:
        pieces = []
        while piece := file.read(size):
            pieces.append(piece)
        file.seek(10)
        again = file.read(5)

    assert b"".join(pieces) == bytes(expected)
    assert again == bytes(expected[10:15])


@pytest.mark.parametrize("kind", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF", "OGG", "MP3", *RARE])
def test_a_whole_file_needs_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    rate = 8_000 if kind == "WVE" else 16_000
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 16_001), rate, format=kind)

    assert examine(path) == Container()


@pytest.mark.parametrize("kind", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", *RARE])
def test_a_file_that_ends_in_its_header_is_not_patched_beyond_its_end(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    soundfile.write(path, np.zeros(100), 8_000, format=kind)
    data = path.read_bytes()
    for size in range(160):
        path.write_bytes(data[:size])
        patches = examine(path).patches
        assert all(at + len(patch) <= size for at, patch in patches.items()), size


def test_a_chunk_is_found_before_and_behind_the_audio(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(101), 16_000, subtype="PCM_U8")
    text = b"GUANO|Version: 1.0"
    data = path.read_bytes()
    path.write_bytes(data + bytes(len(data) % 2) + struct.pack("<4sI", b"guan", len(text)) + text)

    assert chunk(path, b"guan") == text
    assert len(chunk(path, b"fmt ") or b"") == 16
    assert chunk(path, b"bext") is None


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("tag", ["id3", "ape"])
def test_a_tag_behind_a_flac_is_no_damage(
    tmp_path: Path, tag: str, stated: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path, counters = tmp_path / "a.flac", Counters()
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    soundfile.write(path, samples, 16_000, subtype="PCM_24")
    data = bytearray(path.read_bytes())
    if not stated:
        data[21] &= 0xF0
        data[22:26] = bytes(4)
    item = b"Title\0a sound".ljust(100)
    footer = b"APETAGEX" + struct.pack("<4I8x", 2000, len(item) + 32, 1, 1 << 31)
    path.write_bytes(data + {"id3": b"TAG".ljust(128, b"\0"), "ape": footer + item + footer}[tag])

    found = np.concatenate([block.frames[:, 0] for block in read_file(path, faults=Faults(counters))])

    np.testing.assert_allclose(found, samples, atol=1e-6)
    assert (counters.files_cut_short, caplog.text) == (0, "")


def test_a_second_ogg_stream_of_the_same_number_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    soundfile.write(path, np.zeros(32_000), 16_000)
    path.write_bytes(path.read_bytes() * 2)

    assert examine(path).unread == "another stream follows the first: it is not read, take them apart"


def test_a_damaged_page_does_not_hide_the_second_ogg_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 64_000), 16_000)
    data = bytearray(path.read_bytes() * 2)
    at = data.index(b"OggS", 1)
    data[at : at + 4] = b"XXXX"
    path.write_bytes(data)

    assert examine(path).unread is not None


@pytest.mark.parametrize("place", [-1, 1 << 70])
def test_a_place_that_there_is_not_is_not_gone_to(tmp_path, place):
    path = tmp_path / "sound.wav"
    path.write_bytes(b"RIFF")
    with PatchedFile(path, {}) as file:
        assert file.seek(2) == 2
        assert file.seek(place) == 2
        assert file.read() == b"FF"


@pytest.mark.parametrize("stated", [None, 0, 1 << 40])
def test_bw64_is_rf64_by_its_later_name(tmp_path: Path, stated: int | None) -> None:
    path, samples = tmp_path / "a.wav", np.random.default_rng(0).integers(-9_000, 9_000, 16_001).astype(np.int16)
    soundfile.write(path, samples, 16_000, format="RF64")
    data = bytearray(path.read_bytes())
    data[:4] = b"BW64"
    if stated is not None:
        at = data.index(b"ds64") + 16
        data[at : at + 8] = struct.pack("<q", stated)
    path.write_bytes(data)

    counters = Counters()
    read = np.concatenate([audio.frames[:, 0] for audio in read_file(path, faults=Faults(counters))])

    np.testing.assert_array_equal(np.round(read * 32_768).astype(np.int16), samples)
    assert counters.files_cut_short == (stated is not None)
