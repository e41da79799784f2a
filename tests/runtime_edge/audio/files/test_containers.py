"""Patched files and chunks; lengths that do not fit stand in tests of what is read."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_edge.audio.files.containers import Container, PatchedFile, chunk, examine


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


@pytest.mark.parametrize("kind", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF", "OGG", "MP3"])
def test_a_whole_file_needs_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 16_001), 16_000, format=kind)

    assert examine(path) == Container()


@pytest.mark.parametrize("kind", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG"])
def test_a_file_that_ends_in_its_header_is_not_patched_beyond_its_end(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    soundfile.write(path, np.zeros(100), 16_000, format=kind)
    data = path.read_bytes()
    for size in range(120):
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
