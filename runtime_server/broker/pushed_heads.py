"""The heads that devices have been given."""

from __future__ import annotations

from collections.abc import Mapping

import nats.js.errors

from runtime_edge.errors import FormatError
from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.records.envelope import open_record
from runtime_edge.formats.records.head import Head
from runtime_server.broker.bucket_keys import bucket_keys
from runtime_server.broker.hub import Hub, raises_link_error


@raises_link_error
async def pushed_heads(hub: Hub, trusted: minisign.PublicKey | None) -> dict[str, Head]:
    """Each head by its recipients, `rpi4` or `rpi4 of pi-1`; heads that devices would refuse are left out."""
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


class PushedHeads:
    """The heads of one server: those that devices have, and those that they get with a release."""

    def __init__(self, hub: Hub, key: minisign.SecretKey) -> None:
        self._hub, self._key = hub, key

    async def read(self) -> dict[str, Head]:
        """Each head by its recipients. Raises LinkError."""
        return await pushed_heads(self._hub, self._key.public)

    async def give(self, heads: Mapping[str, Head], instead_of: Mapping[str, Head]) -> dict[str, Head]:
        """Push `heads`, by recipient, where the head of `instead_of` is still in use; returns what devices then have.

        Raises LinkError.
        """
        present = await self.read()
        for name, head in heads.items():
            if present.get(name) == instead_of.get(name):
                target, _, device = name.partition(" of ")
                await self._hub.put_head(head, self._key, target, device or None)
        return await self.read()
