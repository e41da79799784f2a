import asyncio

import pytest

from runtime_edge.config import DeviceConfig
from runtime_edge.device.clip_keeper import clip_path
from runtime_edge.device.clip_lender import ClipLender, lend_clips
from runtime_edge.errors import UsageError
from runtime_edge.formats.records.clip import MAX_CLIP_BYTES, PIECE_BYTES, ClipPiece, ClipRequest
from runtime_edge.transport.in_memory import InMemoryTransport

BEGAN = 1_795_264_784.25


class Room:
    def __init__(self, directory):
        self.directory, self.sent = directory, []
        self.lender = ClipLender(directory, self._publish)

    async def _publish(self, data):
        self.sent.append(ClipPiece.decode(data))

    def keep(self, data, label="rain", since=BEGAN):
        path = clip_path(self.directory, label, since)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def ask(self, offset=0, label="rain", since=BEGAN):
        request = ClipRequest(asked="me", label=label, since=since, offset=offset)
        asyncio.run(self.lender.asked(request.encode()))
        return self.sent[-1]


@pytest.fixture
def room(tmp_path):
    return Room(tmp_path / "clips")


def test_a_clip_is_lent_piece_by_piece(room):
    clip = bytes(range(256)) * 100
    room.keep(clip)
    got = b""
    while (piece := room.ask(len(got))).data:
        assert (piece.asked, piece.offset, piece.size) == ("me", len(got), len(clip))
        got += piece.data
    assert got == clip
    assert len(room.sent) == -(-len(clip) // PIECE_BYTES) + 1


def test_there_is_none_until_it_is_written(room):
    assert room.ask().size == 0
    room.keep(b"a clip")
    assert room.ask().data == b"a clip"
    assert room.ask(since=BEGAN + 1).size == 0
    assert room.ask(label="dog").size == 0


def test_nothing_but_clips_is_lent(room):
    room.keep(b"a clip")
    (room.directory.parent / "secret.flac").write_bytes(b"secret")
    (room.directory / "rain" / "secret.flac").write_bytes(b"secret")
    for label in ("../secret", "..", "/etc", "rain/../..", "rain/secret", "."):
        assert room.ask(label=label).size == 0
    asked = len(room.sent)
    for data in (b"", b"\x80", b"\xff" * 100, b"x" * 10_000):
        asyncio.run(room.lender.asked(data))
    assert len(room.sent) == asked


def test_what_is_too_large_or_no_file_is_not_lent(room, caplog):
    room.keep(bytes(MAX_CLIP_BYTES + 1))
    assert room.ask().size == 0
    clip_path(room.directory, "dog", BEGAN).mkdir(parents=True)
    assert room.ask(label="dog").size == 0
    assert caplog.text.count("a clip cannot be lent") == 2


def test_clips_are_lent_only_if_wanted(tmp_path):
    link = InMemoryTransport()
    lend_clips(DeviceConfig(keep_clips=tmp_path), link)
    assert link.requests == {}
    lend_clips(DeviceConfig(device="pi-1", keep_clips=tmp_path, lend_clips=True), link)
    assert set(link.requests) == {"_INBOX.pi-1.clips"}
    with pytest.raises(UsageError, match="lend_clips: there are none without keep_clips; give both"):
        lend_clips(DeviceConfig(lend_clips=True), None)
