"""The heads that devices have been given."""

from __future__ import annotations

import nats.js.errors

from runtime_edge.errors import FormatError
from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.records.envelope import open_record
from runtime_edge.formats.records.head import Head
from runtime_server.broker.bucket_keys import bucket_keys
from runtime_server.broker.hub import Hub, raises_link_error


@raises_link_error
async def pushed_heads(hub: Hub, trusted: minisign.PublicKey | None) -> dict[str, Head]:
    """Each head by whom it is for, `rpi4` or `rpi4 of pi-1`; those that devices refuse are left out."""
    bucket, found = await hub.stream.key_value(subjects.HEADS), {}
    for key in await bucket_keys(hub.stream, subjects.HEADS):
        source = f"head {key}"
        try:
            value = (await bucket.get(key)).value or b""
            owner, _, target = key.partition(".")
            name = target if owner == subjects.ALL_DEVICES else f"{target} of {owner}"
            found[name] = Head.from_json(open_record(value, "head", key, trusted, source).body, source)
        except (nats.js.errors.KeyNotFoundError, FormatError):
            continue
    return found
