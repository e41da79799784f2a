import asyncio
import datetime as dt
import io
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from showroom import CODECS, FRONT_END, HOP, RATE, WINDOW

from runtime_edge.formats import subjects
from runtime_edge.formats.records.clip import PIECE_BYTES, ClipPiece, ClipRequest
from runtime_server.labels import device_clips
from runtime_server.labels.device_clips import DeviceClips, windows_of_clip
from runtime_server.labels.moments import Moment, audio_of

BEGAN = 1_795_279_184.25
AUDIO = (np.random.default_rng(0).uniform(-0.5, 0.5, 5 * RATE) * 32767).astype(np.int16)
MOMENT = Moment("pi-1", "rain", BEGAN + 2, BEGAN + 3, BEGAN + 3)


def clip(samples=AUDIO, rate=RATE, date="2026-11-21T16:39:44.250Z", kind="FLAC", channels=1):
    data = io.BytesIO()
    with soundfile.SoundFile(data, "w", rate, channels, "PCM_16", format=kind) as file:
        if date:
            file.date = date
        file.write(np.repeat(samples[:, None], channels, 1))
    return data.getvalue()


def test_the_windows_of_a_clip_are_its_audio_at_their_times():
    assert dt.datetime.fromisoformat("2026-11-21T16:39:44.250+00:00").timestamp() == BEGAN
    windows = windows_of_clip(clip(), FRONT_END)
    assert [one.header.capture_ns / 1e9 for one in windows] == pytest.approx(
        [BEGAN + (WINDOW + index * HOP) / RATE for index in range(len(windows))]
    )
    assert len(windows) == (len(AUDIO) - WINDOW) // HOP + 1
    np.testing.assert_array_equal(audio_of(windows, FRONT_END, CODECS), AUDIO[: WINDOW + (len(windows) - 1) * HOP])


@pytest.mark.parametrize(
    "data",
    [
        b"", b"fLaC", clip()[:100], clip(rate=RATE + 1), clip(channels=2), clip(kind="WAV"), clip(date=""),
        clip(date="yesterday"), clip(date="9999-99-99T00:00:00Z"), clip(AUDIO[: WINDOW - 1]),
    ],
)  # fmt: skip
def test_what_is_no_clip_has_no_windows(data):
    assert windows_of_clip(data, FRONT_END) == []


def test_a_clip_of_an_hour_is_not_read_whole():
    windows = windows_of_clip(clip(np.zeros(600 * RATE, np.int16)), FRONT_END)
    assert len(windows) <= 12 * RATE // HOP


class Client:
    """The broker's client, and a device that answers with what `answer` returns for a request."""

    def __init__(self, answer):
        self.answer, self.heard, self.requests = answer, {}, []

    def new_inbox(self):
        return "_INBOX.none"

    async def subscribe(self, subject, cb, **_):
        self.heard[subject] = cb

        async def unsubscribe():
            del self.heard[subject]

        return SimpleNamespace(unsubscribe=unsubscribe)

    async def publish(self, subject, data, reply):
        assert subject == subjects.clip_requests("pi-1")
        request = ClipRequest.decode(data)
        self.requests.append(request)
        answers = self.answer(request)
        if answers is None:
            await self.heard[reply](SimpleNamespace(subject=reply, data=b""))
        for data in answers or ():
            await self.heard[subjects.clips("pi-1")](SimpleNamespace(subject=subjects.clips("pi-1"), data=data))


def lent(request, data):
    piece = data[request.offset :][:PIECE_BYTES]
    return [ClipPiece(asked=request.asked, offset=request.offset, size=len(data), data=piece).encode()]


def borrowed(answer, times=1):
    client = Client(answer)
    clips = DeviceClips(SimpleNamespace(client=client), FRONT_END)

    async def borrow():
        return [await clips.windows(MOMENT) for _ in range(times)][-1]

    windows = asyncio.run(borrow())
    assert client.heard == {}
    return windows, client.requests


def test_a_clip_comes_in_pieces_and_is_remembered():
    data = clip()
    assert len(data) > 2 * PIECE_BYTES
    windows, requests = borrowed(lambda request: lent(request, data), times=2)
    assert [one.payload for one in windows] == [one.payload for one in windows_of_clip(data, FRONT_END)]
    assert [request.offset for request in requests] == list(range(0, len(data), PIECE_BYTES))
    assert {(request.label, request.since) for request in requests} == {("rain", MOMENT.since)}


def test_where_nobody_listens_there_is_none_at_once():
    windows, requests = borrowed(lambda _: None)
    assert windows == []
    assert len(requests) == 1


def test_what_is_not_there_is_asked_for_again():
    windows, requests = borrowed(lambda request: lent(request, b""), times=2)
    assert windows == []
    assert len(requests) == 2


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: [b"damaged"],
        lambda _: [],
        lambda request: [ClipPiece(asked="another", offset=0, size=1, data=b"1").encode()] * 20,
        lambda request: [ClipPiece(asked=request.asked, offset=9, size=10, data=b"1").encode()] * 20,
        lambda request: lent(request, b"no FLAC" * 100),
    ],
)
def test_a_device_that_sends_anything_else_lends_nothing(monkeypatch, answer):
    monkeypatch.setattr(device_clips, "PIECE_S", 0.1)
    windows, requests = borrowed(answer)
    assert windows == []
    assert len(requests) == 1
