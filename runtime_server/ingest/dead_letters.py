"""Dead letters: frames that cannot be completed, kept for a while with the reason.

They are in a separate stream, `dead.<partition>.<device>`, limited in number, size and age; the oldest are removed
first. A letter is stored, exactly once, before its frame is removed from the queue.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

import nats.js.errors
from nats.aio.msg import Msg
from nats.js.api import RawStreamMsg
from nats.js.client import JetStreamContext

from runtime_edge.base.text import printable
from runtime_edge.errors import UsageError
from runtime_edge.formats import subjects
from runtime_server.broker.hub import Hub, raises_link_error
from runtime_server.broker.streams import DEAD

UNKNOWN = "_unknown"
"""Stands in for the name of an unknown device; no device can have this name."""
PER_S = 0.1
"""Sustained rate of dead letters per device; a burst may be as large as the number kept for one device, 100."""
_KEPT_BYTES = 256 << 10
"""How much of a frame is kept: enough to see what it was."""
_REASON, _SUBJECT, _SEQUENCE, _IDENTITY, _SIZE = (
    "Ssc-Reason", "Ssc-Subject", "Ssc-Sequence", "Ssc-Message-Id", "Ssc-Bytes",
)  # fmt: skip


@dataclass(frozen=True)
class DeadLetter:
    """A frame in the dead-letter queue, with the reason."""

    number: int
    """Its sequence number among the dead letters."""
    time: datetime | None
    """When the frame became a dead letter."""
    device: str
    reason: str
    subject: str
    """The subject on which the frame was published."""
    sequence: int
    """The frame's place in the stream of frames."""
    message_id: str
    size: int
    """Size of the frame, bytes."""
    frame: bytes
    """The frame, or its first 256 KiB."""


async def store(stream: JetStreamContext, message: Msg, device: str, reason: str) -> None:
    """Store a frame with the reason; returns once the broker has it. Raises what the library raises."""
    sequence = int(message.metadata.sequence.stream)
    headers = {
        subjects.BROKER_ID_HEADER: f"dead.{message.metadata.stream}.{sequence}",
        _REASON: _text(reason),
        _SUBJECT: _text(message.subject),
        _SEQUENCE: str(sequence),
        _IDENTITY: _text(subjects.read_envelope(message.headers, message.subject).message_id),
        _SIZE: str(len(message.data)),
    }
    await stream.publish(_subject(device), message.data[:_KEPT_BYTES], stream=DEAD, headers=headers)


@raises_link_error
async def newest(hub: Hub, count: int) -> list[DeadLetter]:
    """The last `count` letters, the newest first. Raises LinkError."""
    letters = [letter async for letter in _all(hub.stream)]
    return letters[: -count - 1 : -1]


@raises_link_error
async def get(hub: Hub, number: int) -> DeadLetter:
    """One letter. Raises UsageError if there is none with that number, and LinkError."""
    try:
        return _letter(await hub.stream.get_msg(DEAD, number, direct=True))
    except nats.js.errors.NotFoundError:
        raise UsageError(f"dead letter {number}: no such letter; `ssc server dead list` shows all") from None


@raises_link_error
async def purge(hub: Hub, device: str | None = None) -> int:
    """Remove all letters, or those of one device; returns how many there were. Raises UsageError, LinkError."""
    if device not in (None, UNKNOWN):
        subjects.check_device(device or "")
    subject = None if device is None else _subject(device)
    try:
        info = await hub.stream.stream_info(DEAD, subjects_filter=subject or "dead.>")
        await hub.stream.purge_stream(DEAD, subject=subject)
    except nats.js.errors.NotFoundError:
        return 0
    return sum((info.state.subjects or {}).values())


async def _all(stream: JetStreamContext) -> AsyncIterator[DeadLetter]:
    number = 0
    while True:
        try:
            found = await stream.get_msg(DEAD, number + 1, subject="dead.>", direct=True, next=True)
        except nats.js.errors.NotFoundError:
            return
        number = found.seq or 0
        yield _letter(found)


def _letter(stored: RawStreamMsg) -> DeadLetter:
    """Parse a letter, which anyone with write access to the broker may have written."""
    headers = {name: _text(value) for name, value in (stored.headers or {}).items()}
    numbers = [int(text) if (text := headers.get(name, "")).isdecimal() else 0 for name in (_SEQUENCE, _SIZE)]
    return DeadLetter(
        number=stored.seq or 0,
        time=stored.time,
        device=_text((stored.subject or "").rsplit(".", 1)[-1]),
        reason=headers.get(_REASON, "-"),
        subject=headers.get(_SUBJECT, "-"),
        sequence=numbers[0],
        message_id=headers.get(_IDENTITY, "-"),
        size=numbers[1],
        frame=stored.data or b"",
    )


def _subject(device: str) -> str:
    return f"dead.{subjects.partition(device)}.{device}"


def _text(value: str) -> str:
    return printable(value) or "-"
