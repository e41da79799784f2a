"""The streams that a server creates on its broker: frames, dead letters, and those behind buckets and object stores."""

from __future__ import annotations

from typing import Any

from nats.js.api import DiscardPolicy, RePublish, StorageType, StreamConfig

from runtime_edge.formats import subjects
from runtime_edge.formats.records.learnt import MAX_LEARNT_BYTES
from runtime_edge.formats.records.report import MAX_REPORT_BYTES
from runtime_edge.formats.wire import MAX_FRAME_BYTES

DEAD = "DEAD"
"""The stream of dead letters (`runtime_server.ingest.dead_letters`)."""
_FRAMES_BYTES = 4 << 30
_FRAMES_AGE_S = 7 * 24 * 3600
_DUPLICATES_S = 0.1
"""How long the broker remembers message ids: as short as it allows, because each takes memory, up to 64 KiB if a device
chooses so. The ledger knows which windows were counted."""
_DEAD_LETTERS, _DEAD_OF_ONE, _DEAD_AGE_S = 1000, 100, 30 * 24 * 3600
"""Counts rather than bytes, because each letter is small and the broker would reserve a limit in bytes."""
_PRESENCE_TTL_S = 180
"""Devices report at least every minute."""


def all_streams() -> list[StreamConfig]:
    """All streams of a server; the stream of frames is the first."""
    frames = StreamConfig(
        name=subjects.STREAM,
        subjects=["act.>"],
        storage=StorageType.FILE,
        max_bytes=_FRAMES_BYTES,
        max_age=_FRAMES_AGE_S,
        max_msg_size=MAX_FRAME_BYTES,
        discard=DiscardPolicy.OLD,
        duplicate_window=_DUPLICATES_S,
    )
    letters = StreamConfig(
        name=DEAD,
        subjects=["dead.>"],
        storage=StorageType.FILE,
        max_msgs=_DEAD_LETTERS,
        max_msgs_per_subject=_DEAD_OF_ONE,
        max_age=_DEAD_AGE_S,
        discard=DiscardPolicy.OLD,
        allow_direct=True,
    )
    # Devices write here; with a rollup header, one of them could remove what the others have written.
    theirs = {"duplicate_window": _DUPLICATES_S, "allow_rollup_hdrs": False}
    return [
        frames,
        letters,
        bucket(subjects.TABLES, max_msgs_per_subject=5),
        bucket(subjects.HEADS, max_msgs_per_subject=5),
        bucket(subjects.ADAPTATIONS, max_msgs_per_subject=5),
        bucket(subjects.RELEASES, max_msgs_per_subject=20),
        bucket(subjects.PRESENCE, max_age=_PRESENCE_TTL_S, max_msg_size=MAX_REPORT_BYTES, **theirs),
        bucket(subjects.LEARNT, max_msg_size=MAX_LEARNT_BYTES, **theirs),
        object_store(subjects.BUNDLES),
    ]


def bucket(name: str, **settings: Any) -> StreamConfig:
    """The stream of a key-value bucket (NATS ADR-8) that republishes each stored value to those who watch its key."""
    config = StreamConfig(
        name=subjects.bucket_stream(name),
        subjects=[subjects.bucket_subject(name, ">")],
        storage=StorageType.FILE,
        max_msgs_per_subject=1,
        discard=DiscardPolicy.NEW,
        allow_direct=True,
        allow_msg_ttl=True,
        allow_rollup_hdrs=True,
        deny_delete=True,
        republish=RePublish(src=subjects.bucket_subject(name, ">"), dest=subjects.news(name, ">")),
    )
    return config.evolve(**settings)


def object_store(name: str) -> StreamConfig:
    """The stream of an object store (NATS ADR-20)."""
    return StreamConfig(
        name=f"OBJ_{name}",
        subjects=[f"$O.{name}.C.>", f"$O.{name}.M.>"],
        storage=StorageType.FILE,
        max_age=0,
        discard=DiscardPolicy.NEW,
        allow_rollup_hdrs=True,
        allow_direct=True,
    )
