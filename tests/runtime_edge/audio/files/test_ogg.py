"""Ogg files that end within a page: the packets before the cut are read as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from runtime_edge.audio import Counters
from runtime_edge.audio.file_decoder import Faults, read_file, read_span, recording_length

RATE = 16_000
SECONDS = 6
LONGEST_PACKET = 2_048
"""Samples that may be missing before a cut: a packet, and the one it overlaps."""


def record(path: Path, subtype: str, channels: int = 1) -> None:
    # Vorbis and Opus spend about as much on each second of noise as on any other, so bytes tell how long a rest is.
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (SECONDS * RATE, channels)).astype(np.float32)
    soundfile.write(path, noise, RATE, format="OGG", subtype=subtype)


def read(path: Path) -> tuple[np.ndarray, int]:
    """Samples, and files told to be cut short."""
    counters = Counters()
    return np.concatenate(
        [block.frames for block in read_file(path, faults=Faults(counters))]
    ), counters.files_cut_short


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("share", [0.6, 0.97, 0.9999])
def test_a_cut_page_gives_its_packets_as_they_were(tmp_path: Path, subtype: str, channels: int, share: float) -> None:
    path = tmp_path / "a.ogg"
    record(path, subtype, channels)
    whole, told = read(path)
    assert told == 0
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])

    found, told = read(path)

    assert told == 1
    assert len(found) == pytest.approx(share * len(whole), abs=RATE // 4 + LONGEST_PACKET)
    np.testing.assert_array_equal(found[:-LONGEST_PACKET], whole[: len(found) - LONGEST_PACKET])
    assert recording_length(path) == (len(found), RATE)
    np.testing.assert_array_equal(read_span(path, 5_000, 6_000), whole[5_000:6_000])


def test_a_page_of_which_no_packet_is_whole_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    record(path, "VORBIS")
    data = path.read_bytes()
    last = data.rindex(b"OggS")
    for more in (0, 3, 26, 30):
        path.write_bytes(data[: last + more])
        found, told = read(path)
        assert told == 1
        assert 0 < len(found) < SECONDS * RATE
