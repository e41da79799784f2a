"""Bundles and tables on the device's disk: fetched, verified and self-tested before they take over.

<state>/trusted.pub           the key this device trusts (pinned at the first contact unless given)
<state>/bundles/<digest>/     the present bundle and the one before it
<state>/current               name of the present one
<state>/table.json            the last splitter table, as it came
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

from runtime_edge import manifest as manifests
from runtime_edge import minisign, subjects
from runtime_edge.bundle import MANIFEST, SIGNATURE, Bundle, asset_path, check_asset, open_bundle
from runtime_edge.errors import BundleError, SignatureError
from runtime_edge.files import read_bounded, write_atomic
from runtime_edge.link import Link
from runtime_edge.manifest import Manifest
from runtime_edge.releases import MAX_RECORD_BYTES, Release


class BundleStore:
    """The bundles a device keeps."""

    def __init__(self, state: Path, trusted: minisign.PublicKey | None) -> None:
        self.state = state
        self._pin = state / "trusted.pub"
        if trusted is None and self._pin.exists():
            trusted = minisign.read_public_key(self._pin)
        self.trusted = trusted

    def pin(self, key_text: str) -> None:
        """Trust a key from now on, unless one is trusted already. Raises SignatureError."""
        if self.trusted is None:
            self.trusted = minisign.PublicKey.from_text(key_text, "the server's public key")
            write_atomic(self._pin, self.trusted.to_text().encode())

    def current(self) -> Bundle | None:
        """The bundle that ran last, verified again; None on a fresh device. Raises BundleError or SignatureError."""
        pointer = self.state / "current"
        if not pointer.exists():
            return None
        name = read_bounded(pointer, 256, BundleError).decode(errors="replace").strip()
        if Path(name).name != name:
            raise BundleError(f"{pointer}: {name!r} is not a bundle's name; remove the file")
        return open_bundle(self.state / "bundles" / name, self.trusted)

    def adopt(self, bundle: Bundle) -> None:
        """Make a bundle that has been self-tested the present one; all but it and the one before are removed."""
        before = self.state / "current"
        previous = before.read_text().strip() if before.exists() else ""
        write_atomic(before, (bundle.path.name + "\n").encode())
        for directory in (self.state / "bundles").iterdir():
            if directory.name not in (bundle.path.name, previous):
                shutil.rmtree(directory, ignore_errors=True)

    async def fetch(self, link: Link, release: Release, variant: str, present: Bundle | None) -> Bundle:
        """Bring a released bundle onto the disk: only assets that are missing, each checked against its digest.

        Raises LinkError, SignatureError, or BundleError (an older generation among other things).
        """
        data = await link.fetch(subjects.manifest_object(release.manifest), manifests.MAX_MANIFEST_BYTES)
        if manifests.digest(data) != release.manifest:
            raise BundleError(f"release {release.generation}: the manifest's digest does not match")
        if self.trusted is not None:
            if not release.signature:
                raise SignatureError(f"release {release.generation}: not signed, but this device trusts a key")
            minisign.verify(data, release.signature, self.trusted, f"release {release.generation}")
        manifest = manifests.decode(data, f"release {release.generation}")
        older = present is not None and manifest.info.generation < present.manifest.info.generation
        if older and not release.rollback:
            raise BundleError(f"release {release.generation} is older than the bundle in use; not a rollback")
        return await self._install(link, release, data, manifest, variant)

    async def _install(self, link: Link, release: Release, data: bytes, manifest: Manifest, variant: str) -> Bundle:
        bundles = self.state / "bundles"
        bundles.mkdir(parents=True, exist_ok=True)
        final = bundles / release.manifest.split(":")[1][:16]
        if final.exists():
            try:
                return await asyncio.to_thread(_intact, open_bundle(final, self.trusted), variant)
            except (BundleError, SignatureError):
                shutil.rmtree(final)  # a damaged copy is fetched again
        staging = Path(tempfile.mkdtemp(dir=bundles, prefix=".new."))
        try:
            for block in manifest.info.blocks:
                info = manifest.variant(block, variant)
                # In a thread: a card that takes its time must not hold up replies.
                if not await asyncio.to_thread(self._take_over, info.file, info.bytes, staging):
                    asset = await link.fetch(subjects.asset_object(info.file), info.bytes)
                    check_asset(info.file, info.bytes, asset, f"release {release.generation}: {block}")
                    await asyncio.to_thread(write_atomic, asset_path(staging, info.file), asset)
            if release.signature:
                write_atomic(staging / SIGNATURE, release.signature.encode())
            write_atomic(staging / MANIFEST, data)
            os.rename(staging, final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return open_bundle(final, self.trusted)

    def _take_over(self, reference: str, size: int, staging: Path) -> bool:
        """Link an asset that an earlier bundle has; False when none has it intact."""
        for directory in (self.state / "bundles").iterdir():
            path = asset_path(directory, reference)
            if directory == staging or not path.is_file():
                continue
            try:
                data = read_bounded(path, size, BundleError)
                check_asset(reference, size, data, str(path))
            except BundleError:
                continue
            write_atomic(asset_path(staging, reference), data)
            return True
        return False


def _intact(bundle: Bundle, variant: str) -> Bundle:
    """A bundle whose blocks are all there. Raises BundleError."""
    for block in bundle.manifest.info.blocks:
        bundle.block_bytes(block, variant)
    return bundle


def has_bundle(state: Path) -> bool:
    """Whether a bundle has run from this state directory."""
    return (state / "current").exists()


def stored_table(state: Path) -> bytes | None:
    """The last table record this device used, as it came from the server."""
    path = state / "table.json"
    return read_bounded(path, MAX_RECORD_BYTES, BundleError) if path.exists() else None


def store_table(state: Path, record: bytes) -> None:
    """Keep a table record for the next start."""
    write_atomic(state / "table.json", record)
