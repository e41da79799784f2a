"""The result of one window, as sinks write it and users read it."""

from __future__ import annotations

import datetime as dt
import math
from typing import Final, Literal

import msgspec

from runtime_edge.errors import FormatError
from runtime_edge.formats.strict import decode

VERSION: Final = 2
"""Version of results and events as they are written; version 1 had no such field, and is still read."""
Answer = Literal["exit", "device", "server"]
"""Who gave a window's answer: an exit of the encoder, the whole encoder on the device, or the server."""
MAX_RESULT_BYTES = 1 << 20


class WindowResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One window, as written to JSON lines and passed to callbacks; without a head the last four fields are omitted."""

    version: Literal[1, 2] = 1
    """Version of this record; 1 if it does not say."""
    answer: Answer | None = None
    """Who answered; None in version 1 as it was written (`decode_result` fills it in)."""
    revises: int = 0
    """How many answers for the same window came before; omitted in a first answer."""
    window: int
    time: float
    """Capture time of the window's end, seconds since the epoch."""
    file: str | None = None
    """Path of the recording in which the window begins, relative to the given source; None if there is none."""
    offset_s: float | None = None
    """Where in that recording the window begins, seconds."""
    recorded_at: str | None = None
    """The window's start by the recording's own clock, ISO 8601, with a zone only if it has one; else None."""
    embedding: list[float]
    uncertainty: float
    """Normalised to [0, 1]; 1 while the memory is cold."""
    novelty: float | None = None
    """Of an exit's embedding: squared distance to what the device has heard, as a share of that between windows."""
    cut: str
    encoding: str
    width: int = 0
    """Channels of the cut's bottleneck that were shipped; omitted for the plain activation."""
    probe: bool
    generation: int
    """Generation of the bundle that made the embedding."""
    finished: str
    """Where the window was finished: "server", "device" (the whole encoder ran here), "fallback" (the server did not
    answer in time), or "exit" (the exit at the cut, before the server)."""
    latency_ms: float
    """Time from the end of the window to the embedding."""
    device_ms: float
    network_ms: float
    server_ms: float
    frame_bytes: int
    bandwidth_mbps: float
    rtt_ms: float
    cpu: float
    labels: dict[str, float] | None = None
    """The best labels with their scores in [0, 1], best first; without the background label."""
    detected: list[str] | None = None
    """All labels whose score reached the head's threshold, best first; none for an `unknown` sound."""
    unknown: bool = False
    """Whether the head does not know the sound; omitted if it may know it."""
    head_generation: int | None = None
    """Newest generation of the embeddings the head was trained on; labels are best if it equals `generation`."""


class ResultEvent(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="event",
    tag="result",
):
    """A result as other programs get it on `evt.<device>`: what was heard, but no embedding."""

    version: Literal[1, 2] = 1
    answer: Answer | None = None
    revises: int = 0
    device: str
    window: int
    time: float
    file: str | None = None
    """The recording's name, without its directory."""
    offset_s: float | None = None
    recorded_at: str | None = None
    labels: dict[str, float] = {}
    detected: list[str] = []
    head_generation: int | None = None
    uncertainty: float
    novelty: float | None = None
    cut: str
    finished: str
    generation: int
    latency_ms: float


class LabelEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A label that went on or off; published on `evt.<device>` like the results it was derived from."""

    event: Literal["on", "off"]
    version: Literal[1, 2] = 1
    device: str
    label: str
    score: float
    """Highest score since it was first detected, in [0, 1]."""
    since: float
    """Capture time of the end of the window in which it was first detected, seconds since the epoch."""
    time: float
    """The same for the window in which it was last detected."""
    window: int
    """Index in the run of the window with which it went on or off; if no window came after it, the latest one."""
    head_generation: int | None = None


def answer_of(finished: str) -> Answer:
    """Who answered a window with this `finished` ("server", "device", "fallback" or "exit")."""
    if finished == "exit":
        return "exit"
    return "server" if finished == "server" else "device"


def decode_result(line: bytes, source: str = "result") -> WindowResult:
    """Read a line of results of version 1 or 2. Raises FormatError naming `source` and the field."""
    result = decode(line, WindowResult, source, MAX_RESULT_BYTES)
    return msgspec.structs.replace(result, answer=_answer(result, source))


def decode_result_event(data: bytes, source: str = "event") -> ResultEvent:
    """Read an event of kind `result`, of version 1 or 2. Raises FormatError naming `source` and the field."""
    event = decode(data, ResultEvent, source, MAX_RESULT_BYTES)
    return msgspec.structs.replace(event, answer=_answer(event, source))


def decode_label_event(data: bytes, source: str = "event") -> LabelEvent:
    """Read an event of kind `on` or `off`. Raises FormatError naming `source` and the field."""
    event = decode(data, LabelEvent, source, MAX_RESULT_BYTES)
    if event.version == 1:
        raise FormatError(f"{source}: version 1 has no `{event.event}`")
    if not (math.isfinite(event.since) and math.isfinite(event.time) and event.since <= event.time):
        raise FormatError(f"{source}: since {event.since} is after time {event.time}")
    return event


def _answer(record: WindowResult | ResultEvent, source: str) -> Answer:
    if record.revises < 0:
        raise FormatError(f"{source}: revises {record.revises} is below 0")
    if (record.file is None) != (record.offset_s is None):
        raise FormatError(f"{source}: must say both `file` and `offset_s`, or neither")
    if record.recorded_at is not None and (record.file is None or not _is_time(record.recorded_at)):
        raise FormatError(f"{source}: recorded_at is not an ISO 8601 time of a `file`")
    if record.version == 1:
        if isinstance(record, ResultEvent) and record.head_generation is not None:
            raise FormatError(f"{source}: events of version 1 have no `head_generation`")
        if record.answer is not None or record.revises or record.file is not None or record.recorded_at is not None:
            raise FormatError(f"{source}: version 1 has no `answer`, `revises`, `file`, `offset_s` or `recorded_at`")
        return answer_of(record.finished)
    if record.answer is None:
        raise FormatError(f"{source}: version {record.version} must say its `answer`")
    return record.answer


def _is_time(text: str) -> bool:
    try:
        dt.datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
