"""MP3 files that say how long they are, and those that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from runtime_edge.audio import Counters, open_source
from runtime_edge.audio.file_decoder import read_span, recording_length
from runtime_edge.audio.files import mpeg
from runtime_edge.errors import SourceError

RATE = 16_000


def noise() -> np.ndarray:
    """Eight seconds."""
    return np.random.default_rng(0).uniform(-0.5, 0.5, 8 * RATE).astype(np.float32)


def read(path: Path, counters: Counters | None = None) -> np.ndarray:
    return np.concatenate([block.samples for block in open_source(str(path), RATE, counters=counters)])


def without_its_length(path: Path) -> None:
    """Take away an MP3 file's first frame, which holds no sound but how many frames follow."""
    data = path.read_bytes()
    path.write_bytes(data[mpeg.frame_bytes(data) :])


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_that_states_no_length_is_read_to_its_end_which_is_no_fault(tmp_path: Path, mode: str) -> None:
    path, counters = tmp_path / "a.mp3", Counters()
    quiet_at_last = noise() * np.geomspace(1, 1e-4, 8 * RATE).astype(np.float32)
    soundfile.write(path, quiet_at_last, RATE, format="MP3", bitrate_mode=mode, compression_level=0.3)
    samples = read(path)
    without_its_length(path)

    found = read(path, counters)

    assert samples.size <= found.size < samples.size + 4_000
    assert counters.files_cut_short == 0
    assert recording_length(path) == (found.size, RATE)
    np.testing.assert_allclose(read_span(path, 20_000, 20_500)[:, 0], found[20_000:20_500], atol=1e-6)


@pytest.mark.parametrize("tail", [b"TAG" + bytes(125), bytes(1000)])
def test_what_stands_behind_an_mp3_is_no_audio(tmp_path: Path, tail: bytes) -> None:
    path, counters = tmp_path / "a.mp3", Counters()
    soundfile.write(path, noise(), RATE, format="MP3")
    samples = read(path)
    path.write_bytes(path.read_bytes() + tail)

    np.testing.assert_array_equal(read(path, counters), samples)
    assert counters.files_cut_short == 0


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_an_mp3_that_states_no_length_and_is_cut_gives_what_comes_before(tmp_path: Path, share: float) -> None:
    path, counters = tmp_path / "a.mp3", Counters()
    soundfile.write(path, noise(), RATE, format="MP3", bitrate_mode="CONSTANT")
    without_its_length(path)
    samples, data = read(path), path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])

    found = read(path, counters)

    assert len(found) == pytest.approx(share * len(samples), abs=3_000)
    np.testing.assert_array_equal(found[:-2_304], samples[: len(found) - 2_304])
    assert counters.files_cut_short == 1


def test_an_mp3_without_a_whole_frame_is_not_said_to_be_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(path, noise(), RATE, format="MP3")
    path.write_bytes(path.read_bytes()[:150])

    with pytest.raises(SourceError, match=r"a\.mp3: (?!.*not exist)") as caught:
        read(path)
    assert "\n" not in str(caught.value)
