"""Raw PCM through real pipes and a real process."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_edge.audio import Counters, open_source
from runtime_edge.errors import SourceError

RATE = 16_000


@contextmanager
def pipe_of(pieces: list[bytes]) -> Iterator[int]:
    """The reading end of a pipe into which a thread writes the pieces."""
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb", buffering=0) as file:
            for piece in pieces:
                file.write(piece)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield reading
    finally:
        thread.join()
        os.close(reading)


def read(pieces: list[bytes], **options: int | bool | Counters | None) -> np.ndarray:
    with pipe_of(pieces) as fd:
        blocks = list(open_source("-", RATE, stdin_fd=fd, **options))  # type: ignore[arg-type]
    return np.concatenate([block.samples for block in blocks])


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 4_000), max_size=10),
    channels=st.integers(1, 3),
    frames=st.integers(2, 600),
    realtime=st.booleans(),
)
def test_any_cutting_of_the_bytes_gives_the_samples(
    cuts: list[int], channels: int, frames: int, realtime: bool
) -> None:
    pcm = np.random.default_rng(frames).integers(-32_768, 32_768, (frames, channels)).astype("<i2")
    data = pcm.tobytes()
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[a:b] for a, b in pairwise(edges)]

    samples = read(pieces, stdin_channels=channels, realtime=realtime)

    np.testing.assert_allclose(samples, (pcm / 32_768).mean(axis=1), atol=1e-6)


def test_another_rate_is_converted() -> None:
    pcm = np.zeros(44_100, "<i2").tobytes()

    assert abs(read([pcm], stdin_rate=44_100).size - 16_000) <= 1


def test_half_a_sample_at_the_end_is_counted() -> None:
    counters = Counters()

    assert read([b"\x00\x01" * 100 + b"\x00"], counters=counters).size == 100
    assert counters.bad_samples == 1


@pytest.mark.parametrize("realtime", [False, True])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "ended before"),
        (b"\x00", "ended before"),
        (b"RIFF" + bytes(100), "holds WAV"),
        (b"RF64" + bytes(100), "holds WAV"),
        (b"riff\x2e\x91\xcf\x11" + bytes(100), "holds WAV"),
        (b"FORM" + bytes(100), "holds AIFF"),
        (b".snd" + bytes(100), "holds AU"),
        (b"caff" + bytes(100), "holds CAF"),
        (b"ID3\x04" + bytes(100), "holds MP3"),
        (b"\0\0\0\x20ftypM4A " + bytes(100), "holds MP4"),
        (b"\x1a\x45\xdf\xa3" + bytes(100), "holds Matroska"),
        (b"fLaC", "holds FLAC"),
        (b"PK\3\4" + bytes(100), "holds zip"),
        (b".SoX\x1c" + bytes(100), "holds SoX's own format"),
        (b"d\xa3\3\0" + bytes(100), "holds IRCAM"),
        (b"DSD \x1c" + bytes(100), "holds DSD"),
        (3 * (b"G" + bytes(187)), "holds an MPEG transport stream"),
        (3 * (b"\xff\xfd\x14\xc4" + bytes(92)), "holds MP3 or AAC"),  # MP2 of 32 kbit/s
    ],
)
def test_what_is_no_pcm_is_one_line_with_the_fix(data: bytes, reason: str, realtime: bool) -> None:
    with pytest.raises(SourceError, match=reason) as caught:
        read([data], realtime=realtime)

    assert "\n" not in str(caught.value)


def test_an_mp3_without_a_tag_is_known_by_its_frames_however_it_comes() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).uniform(-0.5, 0.5, RATE), RATE, format="MP3")
    data = file.getvalue()

    with pytest.raises(SourceError, match="holds MP3"):
        read([data[at : at + 100] for at in range(0, len(data), 100)])
    assert read([data[:2] + bytes(2_000)]).size == 1_001, "the first two bytes alone are PCM"
    assert read([b"G" + bytes(2_001)]).size == 1_001, "and so is the first byte of a transport stream"


def test_a_terminal_is_refused() -> None:
    master, terminal = os.openpty()
    try:
        with pytest.raises(SourceError, match="terminal"):
            next(open_source("-", RATE, stdin_fd=terminal))
    finally:
        os.close(master)
        os.close(terminal)


@pytest.mark.parametrize("realtime", ["False", "True"])
def test_a_real_process_reads_its_standard_input(realtime: str) -> None:
    program = (
        "from runtime_edge.audio import Counters, Windower, open_source\n"
        f"blocks = open_source('-', 16000, realtime={realtime})\n"
        "print([round(float(w.samples.max()), 3) for w in Windower(16000, 16000).windows(blocks)])\n"
    )
    pcm = np.repeat(np.array([8_192, -16_384, 4_096], "<i2"), 16_000)
    pcm[::2] *= -1

    done = subprocess.run(
        [sys.executable, "-c", program], input=pcm.tobytes(), capture_output=True, timeout=60, check=False
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().strip() == "[0.25, 0.5, 0.125]"


def test_a_process_that_stops_reading_ends_although_its_pipe_stays_open() -> None:
    program = (
        "from runtime_edge.audio import open_source\nprint(next(open_source('-', 16000, realtime=True)).samples.size)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(bytes(3_200))
        process.stdin.flush()
        assert process.stdout.read().strip() == b"1600"
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == b""
