"""Which keys a bucket has."""

from __future__ import annotations

from nats.js import JetStreamContext

from runtime_edge.formats import subjects


async def bucket_keys(stream: JetStreamContext, bucket: str) -> list[str]:
    """Every key that has been put into a bucket, sorted; deleted ones may be among them.

    From what the broker says of the stream behind it. The library's `keys` reads the keys by a consumer and takes it
    for an empty bucket when the last of them is on its way, as on a busy machine.

    Raises what the library raises.
    """
    info = await stream.stream_info(subjects.bucket_stream(bucket), subjects.bucket_subject(bucket, ">"))
    return sorted(name.removeprefix(subjects.bucket_subject(bucket, "")) for name in info.state.subjects or ())
