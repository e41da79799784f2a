import ctypes.util

import numpy as np
import pytest

from runtime_edge.audio.wire_streams import AudioStreamDecoder, AudioStreamEncoder
from runtime_edge.errors import FrameError, UsageError
from runtime_edge.formats.codec import STREAMS
from streamsplit_compile.bundle.soundscape import soundscape

RATE, WINDOW, HOP = 16_000, 16_000, 8000
LOOK_AHEAD = 104

lossless = pytest.mark.parametrize("encoding", ["pcm16-stream", "flac"])


@pytest.fixture(scope="module")
def windows():
    audio = np.rint(soundscape(5.0, RATE, seed=4) * 32767).astype(np.float32) / np.float32(32767)
    return [audio[start : start + WINDOW] for start in range(0, audio.size - WINDOW + 1, HOP)]


def ends(encoding, kbps=24.0):
    return AudioStreamEncoder(encoding, RATE, WINDOW, HOP, kbps), AudioStreamDecoder(encoding, RATE, WINDOW, HOP)


@lossless
def test_windows_come_back_and_only_the_first_is_sent_whole(encoding, windows):
    encoder, decoder = ends(encoding)
    payloads = [encoder.encode(window, index, alone=False) for index, window in enumerate(windows)]
    for index, window in enumerate(windows):
        assert np.array_equal(decoder.decode(payloads[index], index)[0], window)
    assert [payload[0] for payload in payloads] == [0] + [1] * (len(windows) - 1)
    if encoding == "pcm16-stream":
        assert {len(payload) for payload in payloads[1:]} == {1 + 2 * HOP}


@pytest.mark.skipif(ctypes.util.find_library("opus") is None, reason="libopus is not installed")
def test_opus_windows_are_those_of_the_stream(windows):
    encoder, decoder = ends("opus")
    for index, window in enumerate(windows):
        found = decoder.decode(encoder.encode(window, index, alone=False), index)[0]
        if index:  # the first has the decoder's start in it
            assert np.corrcoef(found[LOOK_AHEAD:], window[:-LOOK_AHEAD])[0, 1] > 0.8


@lossless
def test_after_a_gap_the_stream_begins_anew(encoding, windows):
    encoder, decoder = ends(encoding)
    for index in (0, 1, 3, 4):
        payload = encoder.encode(windows[index], index, alone=False)
        assert payload[0] == (index in (1, 4))
        assert np.array_equal(decoder.decode(payload, index)[0], windows[index])


@lossless
def test_a_frame_without_its_predecessor_is_refused_until_the_stream_begins_anew(encoding, windows):
    encoder, decoder = ends(encoding)
    payloads = [encoder.encode(windows[index], index, alone=False) for index in range(3)]
    decoder.decode(payloads[0], 0)
    with pytest.raises(FrameError, match="window 2 continues window 1"):
        decoder.decode(payloads[2], 2)
    encoder.restart()
    assert np.array_equal(decoder.decode(encoder.encode(windows[3], 3, alone=False), 3)[0], windows[3])


@lossless
def test_a_frame_that_must_stand_alone_does(encoding, windows):
    encoder, _ = ends(encoding)
    for index in range(3):
        payload = encoder.encode(windows[index], index, alone=True)
        fresh = AudioStreamDecoder(encoding, RATE, WINDOW, HOP)
        assert np.array_equal(fresh.decode(payload, index)[0], windows[index])


@lossless
def test_the_latest_frame_may_come_twice(encoding, windows):
    encoder, decoder = ends(encoding)
    for index in range(3):
        payload = encoder.encode(windows[index], index, alone=False)
        for _ in range(2):
            assert np.array_equal(decoder.decode(payload, index)[0], windows[index])


@lossless
def test_an_earlier_frame_that_stands_alone_leaves_the_stream_as_it_is(encoding, windows):
    encoder, decoder = ends(encoding)
    payloads = [encoder.encode(windows[index], index, alone=False) for index in range(3)]
    for index in (0, 1, 0, 2):
        assert np.array_equal(decoder.decode(payloads[index], index)[0], windows[index])


@pytest.mark.parametrize("encoding", STREAMS)
def test_damaged_frames_are_refused_and_do_no_harm(encoding, windows):
    if encoding == "opus" and ctypes.util.find_library("opus") is None:
        pytest.skip("libopus is not installed")
    encoder, decoder = ends(encoding)
    payload = encoder.encode(windows[0], 0, alone=False)
    for damaged in (b"", b"\0", b"\0" + payload[3:], payload[:-3]):
        with pytest.raises(FrameError, match="window 0"):
            decoder.decode(damaged, 0)
    assert decoder.decode(payload, 0).shape == (1, WINDOW)


def test_nan_is_silence_and_loud_is_clipped():
    encoder, decoder = ends("pcm16-stream")
    window = np.full(WINDOW, np.nan, np.float32)
    window[:3] = (7.0, -np.inf, 0.5)
    found = decoder.decode(encoder.encode(window, 0, alone=False), 0)[0]
    assert found[:2].tolist() == [1.0, -1.0]
    assert not found[3:].any()


def test_opus_refuses_windows_of_odd_lengths():
    with pytest.raises(UsageError, match=r"2\.5 ms|libopus"):
        AudioStreamEncoder("opus", RATE, 16_001, HOP, 16.0)


@pytest.mark.parametrize("encoding", STREAMS)
def test_whatever_a_frame_holds_it_is_refused_or_gives_audio(encoding, windows):
    if encoding == "opus" and ctypes.util.find_library("opus") is None:
        pytest.skip("libopus is not installed")
    encoder, decoder = ends(encoding)
    payload, random = encoder.encode(windows[0], 0, alone=False), np.random.default_rng(5)
    outcomes = set()
    for index in range(300):
        damaged = bytearray(payload)
        for place in random.integers(0, len(damaged), random.integers(1, 9)):
            damaged[place] = random.integers(256)
        try:
            assert np.isfinite(decoder.decode(bytes(damaged), index)).all()
            outcomes.add("audio")
        except FrameError:
            outcomes.add("refused")
    assert ("refused" in outcomes) == (encoding != "pcm16-stream")  # any bytes are PCM


@pytest.mark.parametrize("first", [b"\x02", b"\x80", b"\xff"])
def test_a_first_byte_that_is_no_flag_is_refused(first):
    decoder = AudioStreamDecoder("pcm16-stream", 16_000, 480, 240)
    with pytest.raises(FrameError, match="window 0: its first byte"):
        decoder.decode(first + bytes(960), 0)
