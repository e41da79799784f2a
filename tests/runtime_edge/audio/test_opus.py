import ctypes.util

import numpy as np
import pytest

from runtime_edge.audio.opus import OpusDecoder, OpusEncoder, packet_sizes
from runtime_edge.errors import FormatError, UsageError
from streamsplit_compile.bundle.soundscape import soundscape

RATE, HOP = 16_000, 8000
LOOK_AHEAD = 104  # samples of libopus at 16 kHz, application audio

needs_opus = pytest.mark.skipif(ctypes.util.find_library("opus") is None, reason="libopus is not installed")


def test_a_chunk_becomes_packets_of_60_ms_and_a_rest():
    assert packet_sizes(8000, RATE) == [960] * 8 + [320]
    assert packet_sizes(2000, RATE) == [960, 960, 80]
    for samples in (0, 1, 8001):
        with pytest.raises(UsageError, match=r"2\.5 ms"):
            packet_sizes(samples, RATE)


@needs_opus
@pytest.mark.parametrize("kbps", [6, 16, 64])
def test_a_stream_costs_its_rate_and_sounds_alike(kbps):
    audio = soundscape(10.0, RATE, seed=1)
    encoder, decoder = OpusEncoder(RATE, kbps), OpusDecoder(RATE)
    chunks = [encoder.encode(audio[start : start + HOP]) for start in range(0, audio.size, HOP)]
    heard = np.concatenate([decoder.decode(chunk, HOP) for chunk in chunks])
    rate_kbps = 8 * sum(map(len, chunks)) / (audio.size / RATE) / 1000
    assert 0.4 * kbps < rate_kbps < 1.3 * kbps
    assert heard.shape == audio.shape
    sent, back = audio[:-LOOK_AHEAD], heard[LOOK_AHEAD:]
    alike = float(np.corrcoef(sent, back)[0, 1])
    assert alike > {6: 0.3, 16: 0.8, 64: 0.97}[kbps]


@needs_opus
@pytest.mark.parametrize("damage", [lambda p: b"", lambda p: p[:-1], lambda p: p + p, lambda p: b"\xff" + p[1:3]])
def test_packets_that_do_not_fit_are_refused(damage):
    packets = OpusEncoder(RATE, 16).encode(soundscape(0.5, RATE, seed=2))
    with pytest.raises(FormatError, match="Opus"):
        OpusDecoder(RATE).decode(damage(packets), HOP)


@needs_opus
def test_a_rate_that_opus_has_not_is_refused():
    with pytest.raises(UsageError, match="32000 Hz"):
        OpusEncoder(32_000, 16)
