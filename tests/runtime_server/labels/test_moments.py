import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from showroom import CODECS, FRONT_END, HOP, RATE, WINDOW

from runtime_edge.formats.wire import WIRE_ENCODINGS, FrameHeader
from runtime_server.labels import moments
from runtime_server.labels.moments import AROUND_S, Moment, audio_of
from runtime_server.labels.sent_windows import SentBatch, SentWindow

AUDIO = np.random.default_rng(0).uniform(-0.5, 0.5, 60 * HOP).astype(np.float32)


def window(index, boot="b0", cut=0, known=None, at=None):
    samples = AUDIO[index * HOP :][:WINDOW] if at is None else AUDIO[:WINDOW]
    encoding = WIRE_ENCODINGS.index("pcm16")
    header = FrameHeader(index if at is None else at, index * 10**9, 1, cut, encoding, False, 0.5)
    return SentWindow(boot, header, np.rint(samples * 32767).astype("<i2").tobytes(), known)


def heard(*windows):
    return audio_of(windows, FRONT_END, CODECS) / 32767


def is_heard(found, begin, length):
    """Whether that is the stretch of audio, as far as 16 bits tell."""
    return len(found) == length and np.allclose(found, AUDIO[begin : begin + length], rtol=0, atol=1 / 32000)


def test_windows_that_overlap_are_one_stretch():
    assert is_heard(heard(*map(window, range(3, 8))), 3 * HOP, 4 * HOP + WINDOW)


def test_what_is_missing_is_silence_and_what_is_known_in_part_begins_later():
    found = heard(window(0), window(5))
    assert is_heard(found[:WINDOW], 0, WINDOW)
    assert not found[WINDOW : 5 * HOP].any()
    assert is_heard(found[5 * HOP :], 5 * HOP, WINDOW)
    assert is_heard(heard(window(4, known=HOP), window(5)), 5 * HOP, WINDOW)


def test_activations_and_other_runs_of_the_device_are_not_heard():
    assert is_heard(heard(window(9, boot="old"), window(2), window(3, cut=1), window(4)), 2 * HOP, 2 * HOP + WINDOW)
    assert heard(window(3, cut=1)).size == 0
    assert heard().size == 0


def test_no_number_of_a_window_makes_it_long():
    for places in ((0, 2**40), (2**40, 0), (5, 5)):
        assert heard(*(window(index, at=at) for index, at in enumerate(places))).size <= 14 * RATE


def test_a_frame_that_cannot_be_read_is_passed_over():
    broken = SentWindow("b0", window(1).header, b"short")
    assert is_heard(heard(window(0), broken, window(2)), 0, 2 * HOP + WINDOW)


def test_a_moment_has_the_windows_that_end_in_it():
    moment = Moment("pi-1", "rain", 10.0, 12.0, 0.0)

    def ends(at):
        return SimpleNamespace(capture_ns=int(at * 1e9))

    assert [moment.has(ends(at)) for at in (9.9, 10.0, 12.0, 12.1)] == [False, True, True, False]
    assert moment.has(ends(9.6), AROUND_S)


@pytest.mark.parametrize(("has_sent", "read"), [(True, 3), (False, 15)])
def test_reading_ends_soon_after_the_moment_and_later_where_a_spool_may_still_bring_it(monkeypatch, has_sent, read):
    """Each batch is of 5 s; the moment is the second one."""
    asked = []

    async def batches(*_):
        for number in range(100):
            asked.append(number)
            ends_s = [1000.0 + 5 * number + half / 2 for half in range(10)]
            index = ends_s[4] * 2
            header = FrameHeader(int(index), int(ends_s[4] * 1e9), 1, 0, WIRE_ENCODINGS.index("pcm16"), False, 0.5)
            yield SentBatch(10, 1000, ends_s, [SentWindow("b0", header, b"")] if has_sent else [])

    monkeypatch.setattr(moments, "sent_windows", batches)
    found = asyncio.run(moments.sent_at(None, Moment("pi-1", "rain", 1006.0, 1008.0, 1008.0), FRONT_END))
    assert len(found) == has_sent
    assert len(asked) == read
