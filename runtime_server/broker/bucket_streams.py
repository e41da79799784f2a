"""The streams that lie under key-value buckets and object stores."""

from __future__ import annotations

from typing import Any

from nats.js.api import DiscardPolicy, RePublish, StorageType, StreamConfig

from runtime_edge.formats import subjects


def bucket(name: str, **settings: Any) -> StreamConfig:
    """The stream of a key-value bucket (NATS ADR-8) that repeats each stored value to those who watch its key."""
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
