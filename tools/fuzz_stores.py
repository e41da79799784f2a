"""Parsers of stores and of a broker's messages, for `tools.fuzz`; they take bytes."""

from __future__ import annotations

import functools
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime_edge.errors import FormatError, SpoolError
from runtime_edge.transport.spool.spool import Spool, SpooledFrame
from runtime_edge.transport.spool.spool_totals import SpoolNote, Totals
from tools.fuzz_files import GOLDEN, directory, from_file

if TYPE_CHECKING:
    from nats.aio.msg import Msg

_DATABASE = "spool.db"
_LIMIT = 1 << 20
_JOURNAL = b"streamsplit.journal/2"
_LOGGED = GOLDEN.parent / "868ff53" / "device"
"""The files of a device that was killed, so that some frames are only in SQLite's log."""


def spool(data: bytes) -> None:
    """Read a spool's database: its frames must be those that were put, or it must be reported as damaged."""
    _opened({_DATABASE: data}, _stored())


def spool_log(data: bytes) -> None:
    """Read SQLite's log beside a spool's database."""
    _opened({_DATABASE: (_LOGGED / _DATABASE).read_bytes(), f"{_DATABASE}-wal": data}, _logged())


def spool_logs() -> list[bytes]:
    """The log of a device that was killed."""
    return [(_LOGGED / f"{_DATABASE}-wal").read_bytes()]


def spool_note(data: bytes) -> Totals:
    """Parse the counters beside a spool."""
    found = from_file(lambda path: SpoolNote(path).read(), f"{_DATABASE}.note")(data)
    if not isinstance(found, Totals):
        raise FormatError("damaged")
    return found


def whole_note(data: bytes) -> bytes:
    """The same with a valid checksum."""
    counters = data.split()[:-1]
    line = b" ".join(counters)
    return b"%b %08x\n" % (line, zlib.crc32(line))


@functools.cache
def _stored() -> list[SpooledFrame]:
    return _opened({_DATABASE: (GOLDEN / "device" / _DATABASE).read_bytes()}, None)


@functools.cache
def _logged() -> list[SpooledFrame]:
    return _opened({name: (_LOGGED / name).read_bytes() for name in (_DATABASE, f"{_DATABASE}-wal")}, None)


def _opened(files: dict[str, bytes], put: list[SpooledFrame] | None) -> list[SpooledFrame]:
    """The frames of a spool with these files. Raises SpoolError when it is refused, or some of `put` are missing.

    Once opened, a spool must accept frames, whatever was wrong with it.
    """
    folder = directory() / "spool"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    opened = Spool(folder / _DATABASE, _LIMIT)
    try:
        found = opened.oldest(1000)
        assert put is None or all(frame in put for frame in found), "frames that were never put"
        opened.put("pi-1.later.0", 0, b"payload", 0.5)
        assert opened.oldest(1000)[-1].payload == b"payload", "it takes no frames"
    finally:
        opened.close()
    if put is not None and found != put:
        raise SpoolError("frames are lost")
    return found


def journal(data: bytes) -> dict[str, int]:
    """Parse a ledger's journal: its entries since it was last written as a whole."""
    from runtime_server.state.ledger import DurableLedger

    folder = directory() / "journal"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "0.json.journal").write_bytes(data)
    starts, counts = [], {}
    for _ in range(2):
        ledger = DurableLedger(folder / "0.json")
        starts.append(ledger.damaged_lines)
        counts = ledger.counts()
        ledger.close()
    assert starts[1] == 0, "the next start finds damage as well"
    if starts[0]:
        raise FormatError("damaged")
    return counts


def whole_journal(data: bytes) -> bytes:
    """The same with valid checksums for its lines."""
    names = [line.partition(b"~")[0] for line in data.splitlines()[1:]]
    return b"\n".join([_JOURNAL, *(b"%b~%08x" % (name, zlib.crc32(name)) for name in names), b""])


def kept_graph(data: bytes) -> bytes:
    """Parse a graph into which each generation's weights are written."""
    from streamsplit_compile.lowering.onnx_lowering import write_weights

    return write_weights(data, _weights(), {})


@functools.cache
def _weights() -> dict[str, np.ndarray[Any, Any]]:
    import onnx

    found = {}
    for path in GOLDEN.glob("server/generations/**/onnx.graph"):
        for value in onnx.load_from_string(path.read_bytes()).graph.input:
            kind = value.type.tensor_type
            shape = [size.dim_value for size in kind.shape.dim]
            found[value.name] = np.ones(shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return found


def head_clips(data: bytes) -> object:
    """Parse the clips that a pushed head was fitted to."""
    from runtime_edge.formats.records.head import Head
    from runtime_server.labels.head_clips import HeadClipsFolder, head_name

    head = Head.from_json((GOLDEN / "records/head.json").read_bytes(), "head")

    def read(path: Path) -> object:
        kept = HeadClipsFolder(path.parent).read(head)
        assert kept is not None
        assert len(kept.samples) == len(kept.places)
        return kept

    return from_file(read, f"heads/{head_name(head.to_json())}.clips")(data)


def head_clips_corpus() -> list[bytes]:
    """Two clips, one of them of two windows."""
    import msgspec

    from runtime_server.labels.head_clips import HeadClips

    windows = np.linspace(-1, 1, 3 * 16).astype("<f2").tobytes()
    head = (GOLDEN / "records/head.json").read_bytes()
    return [msgspec.msgpack.encode(HeadClips(head=head, clips=[("dog",), ()], places=[0, 0, 1], windows=windows))]


def record(data: bytes) -> object:
    """Read a file as `ssc inspect FILE` does."""
    from streamsplit_compile.cli.tables.record_tables import record_summary

    return from_file(record_summary, "record.json")(data)


def measurements(data: bytes) -> object:
    """Parse a file that `ssc bench run` wrote."""
    from runtime_server.lab.policy_bench import read_bench

    return from_file(read_bench, "bench.json")(data)


def records() -> list[bytes]:
    """One record of each kind."""
    return [(GOLDEN / f"records/{kind}.json").read_bytes() for kind in ("adaptation", "head", "submodel", "table")]


def arrival(data: bytes) -> object:
    """Parse a frame as the broker delivers it: its message id, a line end, the frame."""
    from runtime_server.ingest.arrival import decode_arrival

    return decode_arrival(_message(data), 1, 0.0)


def arrivals() -> list[bytes]:
    """Frames with their own ids."""
    from runtime_edge.formats import subjects
    from runtime_edge.formats.wire import decode_frame

    frames = [path.read_bytes() for path in sorted(GOLDEN.glob("frames/*.frame"))]
    ids = [subjects.message_id("pi-1", "boot", decode_frame(frame)[0][0].window) for frame in frames]
    return [name.encode() + b"\n" + frame for name, frame in zip(ids, frames, strict=True)]


def _message(data: bytes) -> Msg:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from runtime_edge.formats import subjects

    name, _, frame = data.partition(b"\n")
    headers = {subjects.IDENTITY_HEADER: name.decode(errors="replace")}
    return Msg(Client(), subjects.frames("pi-1"), data=frame, headers=headers)


class _Behind:
    """The part of the library's protocol that takes a stream of bytes."""

    def data_received(self, data: bytes) -> None:
        """See asyncio."""


def inbox(data: bytes) -> None:
    """Parse a broker's bytes to a device, which arrive in pieces."""
    import asyncio
    from typing import cast

    from runtime_edge.transport.fast_client import InboxSorter

    taken: list[tuple[str, bytes, str]] = []
    sorter = InboxSorter(cast(asyncio.Protocol, _Behind()), "_INBOX.pi-1", lambda *message: taken.append(message))
    for start in range(0, len(data), 7):
        piece = data[start : start + 7]
        sorter.get_buffer(-1)[: len(piece)] = piece
        sorter.buffer_updated(len(piece))
    assert sum(len(payload) for _, payload, _ in taken) <= len(data)


def inboxes() -> list[bytes]:
    """Messages for the inbox, with and without headers, and for other subjects."""
    return [
        b"PING\r\nMSG _INBOX.pi-1.a1 2 4\r\ndata\r\nMSG news.tables 1 2\r\nhi\r\n",
        b"HMSG _INBOX.pi-1.a2 2 16 20\r\nNATS/1.0 503\r\n\r\ndata\r\n+OK\r\n",
    ]


def objects() -> list[bytes]:
    """The object store's information on an object, and on a deleted one."""
    return [
        b'{"name":"model","bucket":"bundles","nuid":"abcdefghijklmnopqrstuv","size":4,"chunks":1,"digest":"SHA-256=x"}',
        b'{"name":"model","bucket":"bundles","nuid":"","size":0,"deleted":true}',
    ]


def update_log(data: bytes) -> object:
    """Parse a device's log of updates; damaged lines are left out."""
    from runtime_edge.updates.trial import update_log as read

    found = from_file(lambda path: read(path.parent), "updates.jsonl")(data)
    if getattr(found, "damaged_lines", 0):
        raise FormatError("damaged")
    return found


def recorded_time(data: bytes) -> object:
    """Parse the time at which a recording began, from its header and a comment."""
    from runtime_edge.audio.files.recorded_time import began

    comment, _, content = data.partition(b"\n")
    found = from_file(lambda path: began(path, comment.decode("utf-8", "replace")), "recording.wav")(content)
    if found is None:
        raise FormatError("it says no time")
    return found


def recorded_times() -> list[bytes]:
    """Recordings with the time in AudioMoth's comment, in GUANO, and in a broadcast chunk."""
    audio = b"fmt \x10\0\0\0" + bytes(16) + b"data\x04\0\0\0" + bytes(4)
    guano = b"GUANO|Version: 1.0\nTimestamp: 2026-01-02T03:04:05.5+01:00\n"
    broadcast = bytes(256 + 32 + 32) + b"2026-01-0203:04:05" + bytes(10)
    chunks = [
        b"",
        *(
            b"%b%b%b" % (name, len(data).to_bytes(4, "little"), data)
            for name, data in ((b"guan", guano), (b"bext", broadcast))
        ),
    ]
    comments = [b"Recorded at 03:04:05 02/01/2026 (UTC+5:30) by AudioMoth", b"", b""]
    return [
        b"%b\nRIFF\0\0\0\0WAVE%b%b" % (comment, extra, audio) for comment, extra in zip(comments, chunks, strict=True)
    ]
