"""Fetches the files of a bundle that a device lacks, as patches to its own files if those are shorter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from runtime_edge.base.files import write_atomic
from runtime_edge.errors import FormatError, LinkError
from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import Bundle, asset_path, check_asset
from runtime_edge.formats.manifest import Manifest
from runtime_edge.formats.patch import apply_patch
from runtime_edge.transport.protocol import Transport

Allow = Callable[[int], None]
"""Called with the size of an update, bytes, before it is fetched; raises WaitsForBudget if it may not come now."""


def every_block(manifest: Manifest) -> int:
    """The number of blocks of the whole encoder."""
    return len(manifest.info.blocks)


@dataclass(frozen=True)
class Wanted:
    """Which part of a bundle to fetch."""

    blocks: Callable[[Manifest], int] = every_block
    """How many of its first blocks."""
    allow: Allow | None = None
    """Checks the size; None: any size is allowed."""


EVERYTHING = Wanted()


@dataclass(frozen=True)
class SeenBundle:
    """What was fetched to find out the size of a bundle, whose update may then have to wait."""

    manifest: str = ""
    """Its digest."""
    data: bytes = b""
    sizes: dict[str, int | None] = field(default_factory=dict)
    """Sizes of patches; None: there is no such patch."""


class MissingAsset(NamedTuple):
    """A file to fetch."""

    name: str
    """The block, or the asset of a cut."""
    reference: str
    size: int


@dataclass
class FetchedBytes:
    """Counts of what was fetched."""

    fetched_bytes: int = 0
    assets: int = 0
    patches: int = 0


@dataclass(frozen=True)
class AssetFetch:
    """Fetches the files of one bundle in one variant.

    Args:
        connection: to the broker.
        known: bundles on this disk, whose files patches can start from.
        variant: which compiled files.
        where: names the bundle in errors.
        sizes: sizes of patches that are already known; None: there is no such patch.
    """

    connection: Transport
    known: Sequence[Bundle]
    variant: str
    where: str
    sizes: dict[str, int | None] = field(default_factory=dict)

    async def cost(self, missing: Sequence[MissingAsset]) -> int:
        """How many bytes it takes to fetch them. Raises LinkError."""
        return sum([await self._cost(asset) for asset in missing])

    async def bring(self, missing: Sequence[MissingAsset], staging: Path) -> FetchedBytes:
        """Fetch them all into a bundle's directory. Raises LinkError or BundleError."""
        done = FetchedBytes()
        for name, reference, size in missing:
            made, cost = await self._patched(name, reference, size)
            if made is None:
                made = await self.connection.fetch(subjects.asset_object(reference), size)
                check_asset(reference, size, made, f"{self.where}: {name}")
                done.assets, done.fetched_bytes = done.assets + 1, done.fetched_bytes + len(made)
            else:
                done.patches, done.fetched_bytes = done.patches + 1, done.fetched_bytes + cost
            # In a thread: a slow memory card must not delay replies.
            await asyncio.to_thread(write_atomic, asset_path(staging, reference), made)
        return done

    async def _cost(self, asset: MissingAsset) -> int:
        for bundle, old in self._earlier(asset.name):
            patch = subjects.patch_object(old, asset.reference)
            if patch not in self.sizes and asset_path(bundle.path, old).is_file():
                self.sizes[patch] = await self.connection.object_bytes(patch)
            size = self.sizes.get(patch)
            if size is not None and size <= asset.size:
                return size
        return asset.size

    async def _patched(self, name: str, reference: str, size: int) -> tuple[bytes | None, int]:
        """An asset made by patching a predecessor on this disk, or None, and the bytes fetched for it."""
        for bundle, old in self._earlier(name):
            try:
                data = await asyncio.to_thread(bundle.read, old)
                patch = await self.connection.fetch(subjects.patch_object(old, reference), size)
                made = await asyncio.to_thread(apply_patch, data, patch, size)
                check_asset(reference, size, made, f"patch for {name}")
            except (FormatError, LinkError):
                continue  # the whole file is there, too
            return made, len(patch)
        return None, 0

    def _earlier(self, name: str) -> list[tuple[Bundle, str]]:
        """Bundles that have a file of that name, each with its reference."""
        found = []
        for bundle in self.known:
            try:
                found.append((bundle, bundle.manifest.device_files(self.variant)[name][0]))
            except (KeyError, FormatError):
                continue
        return found
