import ctypes.util
from types import SimpleNamespace

import numpy as np
import pytest

from runtime_edge.audio.wire_streams import AudioStreamEncoder
from runtime_edge.formats import subjects
from runtime_edge.formats.wire import decode_frame, encode_frame
from runtime_server.labels.sent_windows import SentWindows

RATE, WINDOW, HOP = 8000, 4000, 1000
FRONT_END = SimpleNamespace(sample_rate=RATE, window_samples=WINDOW, hop_samples=HOP)
AUDIO = np.rint(np.random.default_rng(0).uniform(-0.5, 0.5, 40 * HOP) * 32767).astype(np.float32) / np.float32(32767)


def window(index):
    return AUDIO[index * HOP :][:WINDOW]


def message(index, payload, encoding="flac", cut=0, boot="b0", compressed=False):
    frame = encode_frame(index, index * 10**9, 1, cut, encoding, compressed, 0.5, payload)
    headers = {subjects.IDENTITY_HEADER: f"pi-1.{boot}.{index}"}
    return SimpleNamespace(data=frame, subject=subjects.frames("pi-1"), headers=headers)


def stream(encoding, indices):
    encoder = AudioStreamEncoder(encoding, RATE, WINDOW, HOP, 16.0)
    return [message(index, encoder.encode(window(index), index, alone=False), encoding) for index in indices]


def read(messages, near=lambda header: True):
    sent = SentWindows(FRONT_END, near)
    return [found for one in messages for found in sent.of(one)]


def samples(found):
    return np.frombuffer(found.payload, "<i2") / np.float32(32767)


@pytest.mark.parametrize("encoding", ["flac", "pcm16-stream"])
def test_windows_of_a_stream_stand_alone(encoding):
    found = read(stream(encoding, range(8)))
    assert [(one.boot, one.header.window, one.whole, one.is_audio) for one in found] == [
        ("b0", index, True, True) for index in range(8)
    ]
    for index, one in enumerate(found):
        np.testing.assert_allclose(samples(one), window(index), atol=1e-6)
        ((header, payload),) = decode_frame(one.frame)
        assert (header, payload) == (one.header, one.payload)


def test_a_stream_is_joined_in_its_middle():
    found = read(stream("flac", range(10))[5:])
    assert [one.known for one in found] == [HOP, 2 * HOP, 3 * HOP, None, None]
    for index, one in enumerate(found, start=5):
        known = one.known or WINDOW
        np.testing.assert_allclose(samples(one)[-known:], window(index)[-known:], atol=1e-6)


def test_after_a_gap_it_is_joined_anew():
    found = read(stream("flac", range(10))[:4] + stream("flac", range(10))[6:])
    assert [one.known for one in found] == [None] * 4 + [HOP, 2 * HOP, 3 * HOP, None]


def test_a_window_that_comes_again_and_one_of_the_spool_do_not_disturb_the_stream():
    live = stream("flac", range(6))
    late = message(0, AudioStreamEncoder("flac", RATE, WINDOW, HOP, 16.0).encode(window(0), 0, alone=True))
    found = read([*live[:4], live[3], late, *live[4:]])
    assert all(one.whole for one in found)
    assert [one.header.window for one in found] == [0, 1, 2, 3, 3, 0, 4, 5]
    np.testing.assert_allclose(samples(found[-1]), window(5), atol=1e-6)


def test_what_is_damaged_is_left_out_and_the_rest_goes_on():
    broken = stream("flac", range(8))
    broken[2] = message(2, b"\1nothing")
    found = read(broken)
    assert [one.header.window for one in found] == [0, 1, 3, 4, 5, 6, 7]
    assert [one.known for one in found[2:]] == [HOP, 2 * HOP, 3 * HOP, None, None]
    assert (
        read([SimpleNamespace(data=b"\xff" * 9, subject="act.0.pi-1", headers={}), message(1, b"x", "flac", 1)]) == []
    )


def test_only_what_is_near_is_decoded_and_activations_pass_as_they_are():
    found = read(stream("flac", range(8)), lambda header: header.window in (5, 6))
    assert [one.header.window for one in found] == [5, 6]
    (one,) = read([message(3, b"12345678", "int8", cut=2)])
    assert (one.payload, one.is_audio, one.whole) == (b"12345678", False, True)


@pytest.mark.skipif(ctypes.util.find_library("opus") is None, reason="libopus is not installed")
def test_a_stream_of_opus_is_joined_in_its_middle():
    """What the decoder does not know of the packets before fades within the first window that is joined."""
    sound = np.sin(2 * np.pi * 440 * np.arange(len(AUDIO)) / RATE).astype(np.float32) * 0.3
    encoder = AudioStreamEncoder("opus", RATE, WINDOW, HOP, 32.0)
    sent = [
        message(index, encoder.encode(sound[index * HOP :][:WINDOW], index, alone=False), "opus") for index in range(12)
    ]
    whole, joined = read(sent), read(sent[5:])
    assert [one.known for one in joined] == [HOP, 2 * HOP, 3 * HOP, None, None, None, None]
    np.testing.assert_allclose(samples(joined[-1]), samples(whole[-1]), atol=0.02)
