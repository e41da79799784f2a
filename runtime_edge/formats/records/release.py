"""The release: which bundle devices of a target should run."""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from runtime_edge.formats.manifest import Digest
from runtime_edge.formats.strict import Strict, decode

MAX_RELEASE_BYTES = 64 << 10


class ReleasedBundle(Strict, frozen=True, kw_only=True):
    """A bundle in the object store that a device may be told to run."""

    generation: Annotated[int, Meta(ge=1, le=0xFFFFFFFF)]
    manifest: Digest
    signature: str = ""
    """Contents of manifest.json.minisig; empty when the bundle is not signed."""
    rollback: bool = False
    """Whether devices may go back to it from a newer generation."""


class Release(ReleasedBundle, frozen=True, kw_only=True):
    """The record under `releases/<target>`."""

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

    def forward_only(self) -> Release:
        """The same without a word of going back."""
        stable = None if self.stable is None else replace(self.stable, rollback=False)
        return replace(self, rollback=False, stable=stable)


def canary_place(device: str, generation: int) -> float:
    """A device's place, in [0, 1), in the order in which a generation is rolled out; different for each generation."""
    digest = hashlib.blake2b(f"{generation}.{device}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / (1 << 32)


def encode(release: Release) -> bytes:
    """JSON bytes, the body of a record."""
    return msgspec.json.encode(release)


def decode_release(data: bytes, source: str) -> Release:
    """Raises FormatError naming the field."""
    return decode(data, Release, source, MAX_RELEASE_BYTES)
