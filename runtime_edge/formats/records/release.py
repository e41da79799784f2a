"""What a server says about a release, and signed tables, as they stand in the broker's buckets."""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

from runtime_edge.errors import SignatureError, TableError
from runtime_edge.formats import minisign
from runtime_edge.formats.manifest import Digest
from runtime_edge.formats.records.table import SplitterTable
from runtime_edge.formats.strict import Strict, decode

MAX_RECORD_BYTES = 128 << 10


class ReleasedBundle(Strict, frozen=True, kw_only=True):
    """A bundle in the object store that a device may be told to run."""

    generation: Annotated[int, Meta(ge=1, le=0xFFFFFFFF)]
    manifest: Digest
    signature: str = ""
    """Contents of manifest.json.minisig; empty when the bundle is not signed."""
    rollback: bool = False
    """Whether devices may go back to it from a newer generation."""


class Release(ReleasedBundle, frozen=True, kw_only=True):
    """The value under `releases/<target>`: which bundle devices of a target should run."""

    share: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """Share of the devices it is for: the canaries, while it has to prove itself."""
    stable: ReleasedBundle | None = None
    """What the others run."""
    oldest: Annotated[int, Meta(ge=1, le=0xFFFFFFFF)] = 1
    """The oldest generation whose frames the server still completes; what is older is retired."""

    def for_device(self, device: str) -> ReleasedBundle:
        """What one device should run."""
        if self.stable is None or canary_place(device, self.generation) < self.share:
            return self
        return self.stable


def canary_place(device: str, generation: int) -> float:
    """Where in [0, 1) a device stands in the order in which a generation is given out; another one each time."""
    digest = hashlib.blake2b(f"{generation}.{device}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / (1 << 32)


class SignedTable(Strict, frozen=True, kw_only=True):
    """The value under `tables/<target>` or `tables/<target>.<device>`."""

    table: str
    signature: str = ""


def encode(record: Release | SignedTable) -> bytes:
    """JSON bytes of a record."""
    return msgspec.json.encode(record)


def decode_release(data: bytes, source: str) -> Release:
    """Raises FormatError naming the field."""
    return decode(data, Release, source, MAX_RECORD_BYTES)


def sign_table(table: SplitterTable, key: minisign.SecretKey | None) -> SignedTable:
    """A table ready to be put; signed when there is a key."""
    text = table.to_json()
    signature = "" if key is None else minisign.sign(text, key, f"table:{table.target}")
    return SignedTable(table=text.decode(), signature=signature)


def open_table(
    data: bytes, trusted: minisign.PublicKey | None, source: str, target: str | None = None
) -> SplitterTable:
    """Check the signature where a key is trusted and read the table, which must be for `target` when that is given.

    Raises SignatureError or TableError.
    """
    record = decode(data, SignedTable, source, MAX_RECORD_BYTES)
    text = record.table.encode()
    if trusted is not None:
        if not record.signature:
            raise SignatureError(f"{source}: the table is not signed, but this device trusts a key")
        minisign.verify(text, record.signature, trusted, source)
    try:
        table = SplitterTable.from_json(text, source)
    except UnicodeError:
        raise TableError(f"{source}: not text") from None
    if target is not None and table.target != target:
        raise TableError(f"{source}: made for target {table.target!r}, not for {target!r}")
    return table
