"""Lists the keys of a bucket."""

from __future__ import annotations

from nats.js import JetStreamContext

from runtime_edge.formats import subjects


async def bucket_keys(stream: JetStreamContext, bucket: str) -> list[str]:
    """Every key that was ever put into a bucket, sorted; deleted ones may be among them.

    The keys come from the broker's description of the bucket's stream. The library's `keys` reads them through a
    consumer and, on a busy machine, reports an empty bucket while the last of them is still on its way.

    Raises what the library raises.
    """
    info = await stream.stream_info(subjects.bucket_stream(bucket), subjects.bucket_subject(bucket, ">"))
    return sorted(name.removeprefix(subjects.bucket_subject(bucket, "")) for name in info.state.subjects or ())
