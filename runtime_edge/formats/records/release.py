"""The release: which bundle the devices of a target should run."""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from runtime_edge.formats.manifest import Digest, Generation
from runtime_edge.formats.strict import Strict, decode

MAX_RELEASE_BYTES = 64 << 10


class ReleasedBundle(Strict, frozen=True, kw_only=True):
    """A bundle in the object store that devices may be told to run."""

    generation: Generation
    manifest: Digest
    signature: str = ""
    """Contents of manifest.json.minisig; empty if the bundle is not signed."""
    rollback: bool = False
    """Whether devices may go back to it from a newer generation."""


class Release(ReleasedBundle, frozen=True, kw_only=True):
    """The record under `releases/<target>`."""

    share: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """Share of the devices it is for: the canaries, while it has to prove itself."""
    stable: ReleasedBundle | None = None
    """What the other devices run."""
    oldest: Generation = 1
    """The oldest generation whose frames the server still completes; older ones are retired."""

    def for_device(self, device: str) -> ReleasedBundle:
        """The bundle that a given device should run."""
        if self.stable is None or canary_place(device, self.generation) < self.share:
            return self
        return self.stable

    def forward_only(self) -> Release:
        """The same release without permission to go back."""
        stable = None if self.stable is None else replace(self.stable, rollback=False)
        return replace(self, rollback=False, stable=stable)


def canary_place(device: str, generation: int) -> float:
    """A device's position in the order in which a generation is rolled out, in [0, 1); differs by generation."""
    digest = hashlib.blake2b(f"{generation}.{device}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / (1 << 32)


def encode(release: Release) -> bytes:
    """JSON bytes, the body of a record."""
    return msgspec.json.encode(release)


def decode_release(data: bytes, source: str) -> Release:
    """Read a release. Raises FormatError naming the field."""
    return decode(data, Release, source, MAX_RELEASE_BYTES)
