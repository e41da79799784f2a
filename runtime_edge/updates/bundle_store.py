"""Bundles on the device's disk: fetched, verified and self-tested before they run.

<state>/trusted.pub           the key this device trusts (pinned at the first contact unless given)
<state>/bundles/<digest>/     the present bundle, and those to go back to
<state>/bundles.json          which is which (`runtime_edge.updates.trial`)
<state>/numbers.json          numbers of the tables, heads and releases it has accepted, which are beside it as they
<state>/table.json, head.json, release.json      came (`runtime_edge.updates.received_records`)
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from runtime_edge.base.checked_files import check, write_checked
from runtime_edge.base.files import read_bounded, write_atomic
from runtime_edge.errors import BundleError, FormatError, OlderBundle, SignatureError
from runtime_edge.formats import manifest as manifests
from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.bundle import (
    ASSETS,
    MANIFEST,
    SIGNATURE,
    Bundle,
    asset_path,
    check_asset,
    check_comment,
    open_bundle,
)
from runtime_edge.formats.manifest import Manifest
from runtime_edge.formats.minisign import signature_path
from runtime_edge.formats.records.release import ReleasedBundle
from runtime_edge.inference.contract import RuntimeOptions
from runtime_edge.inference.cut_assets.loaded import self_test
from runtime_edge.inference.isolated_self_test import self_test_in_child
from runtime_edge.inference.prefix import Prefix
from runtime_edge.inference.variants import AUTO, choose_variant
from runtime_edge.transport.protocol import Transport
from runtime_edge.updates.asset_fetch import EVERYTHING, AssetFetch, MissingAsset, SeenBundle, Wanted
from runtime_edge.updates.trial import Refusal, Trials

_STAGING = ".new."


@dataclass(frozen=True)
class FetchedBundle:
    """A fetched bundle, and how many bytes that took."""

    bundle: Bundle
    fetched_bytes: int = 0
    """Bytes of assets and patches."""
    assets: int = 0
    """Files fetched in full."""
    patches: int = 0
    """Files made from the device's own copy and a patch."""


class BundleStore:
    """The bundles a device keeps."""

    def __init__(self, state: Path, trusted: minisign.PublicKey | None) -> None:
        self.state = state
        self.trials = Trials(state)
        self._bundles = state / "bundles"
        self._pin = state / "trusted.pub"
        self._seen = SeenBundle()
        self._trusted = trusted
        self._trusted = self.trusted  # a damaged key is an error now, not at the first bundle

    @property
    def trusted(self) -> minisign.PublicKey | None:
        """The key that must have signed bundles, tables and heads: given, or pinned by this or another store."""
        fix = ": the server's key is then pinned at the next contact, whoever answers"
        if self._trusted is None and check(self._pin, SignatureError, fix):
            self._trusted = minisign.read_public_key(self._pin)
        return self._trusted

    async def pin_first(self, connection: Transport) -> None:
        """At the first contact, trust the key that the server publishes, unless one is trusted already.

        Raises LinkError or SignatureError.
        """
        if self.trusted is None:
            key = await connection.value(subjects.RELEASES, subjects.SIGNING_KEY)
            if key is not None:
                self._trusted = minisign.PublicKey.from_text(key.decode(errors="replace"), "the server's public key")
                write_checked(self._pin, self._trusted.to_text().encode())

    def recover(self) -> list[Refusal]:
        """Call once when a device starts: refuses a bundle that crashed it, and removes partly fetched ones."""
        for left in self._bundles.glob(f"{_STAGING}*"):
            shutil.rmtree(left, ignore_errors=True)
        return self.trials.recover()

    def current(self) -> Bundle | None:
        """The bundle that ran last, verified again; None on a fresh device. Raises BundleError or SignatureError."""
        digest = self.trials.record().current
        return None if digest is None else self._open(digest)

    def earlier(self) -> list[Bundle]:
        """Bundles to roll back to, the best first; damaged ones are left out."""
        record = self.trials.known()
        found = []
        for digest in (record.proven, record.before):
            if digest is not None and digest != record.current:
                try:
                    found.append(self._open(digest))
                except FormatError:
                    continue
        return found

    def holds(self, bundle: Bundle) -> bool:
        """Whether a bundle belongs to this store, rather than being a directory that somebody gave."""
        return bundle.path.parent == self._bundles

    def adopt(self, bundle: Bundle) -> None:
        """Make a self-tested bundle the present one; remove those no longer needed."""
        wanted = {self._path(digest) for digest in self.trials.adopt(bundle).wanted}
        for directory in self._bundles.iterdir():
            if directory not in wanted and not directory.name.startswith(_STAGING):
                shutil.rmtree(directory, ignore_errors=True)

    async def fetch(
        self,
        connection: Transport,
        release: ReleasedBundle,
        variant: str,
        target: str,
        present: Bundle | None,
        wanted: Wanted = EVERYTHING,
    ) -> FetchedBundle:
        """Fetch the wanted part of a released bundle: only what is missing, as patches if those are smaller.

        `variant` may be "auto" (`choose_variant`). Raises LinkError, SignatureError, BundleError (OlderBundle among
        them), or WaitsForBudget.
        """
        where = f"release {release.generation}"
        data = await self._manifest(connection, release.manifest, wanted, where)
        comment = None
        if self.trusted is not None:
            if not release.signature:
                raise SignatureError(f"{where}: not signed, but this device trusts a key")
            comment = minisign.verify(data, release.signature, self.trusted, where)
        manifest = manifests.decode(data, where)
        if comment is not None:
            check_comment(comment, manifest, where)
        if manifest.info.generation != release.generation:
            raise BundleError(f"{where}: the manifest is of generation {manifest.info.generation}")
        if not release.rollback:
            _check_order(present, manifest, where)
        variant = choose_variant(manifest, variant, target)
        final = self._path(release.manifest)
        kept = await asyncio.to_thread(self._readable, final)
        if kept is None:
            finish = partial(self._finish, final=final, manifest=data, signature=release.signature)
        else:
            finish = partial(_add, final=final)
        return await self._bring(connection, manifest, variant, wanted, finish, kept)

    async def complete(self, connection: Transport, bundle: Bundle, variant: str, wanted: Wanted) -> FetchedBundle:
        """Fetch more blocks of a bundle that is here.

        Raises LinkError, BundleError or WaitsForBudget; then nothing has changed.
        """
        if self._seen.manifest != bundle.digest:
            self._seen = SeenBundle(bundle.digest)
        return await self._bring(connection, bundle.manifest, variant, wanted, partial(_add, final=bundle.path), bundle)

    async def _manifest(self, connection: Transport, digest: str, wanted: Wanted, where: str) -> bytes:
        """A manifest, fetched only once: a waiting update looks at it again."""
        if self._seen.manifest == digest and self._seen.data:
            return self._seen.data
        if wanted.allow is not None:
            wanted.allow(0)
        data = await connection.fetch(subjects.manifest_object(digest), manifests.MAX_MANIFEST_BYTES)
        if manifests.digest(data) != digest:
            raise BundleError(f"{where}: the manifest's digest does not match")
        self._seen = SeenBundle(digest, data)
        return data

    async def _bring(
        self,
        connection: Transport,
        manifest: Manifest,
        variant: str,
        wanted: Wanted,
        finish: Callable[[Path], Path],
        kept: Bundle | None,
    ) -> FetchedBundle:
        """Fetch what is missing, also for a bundle that is `kept`; `finish` moves its directory into place."""
        known = await asyncio.to_thread(self._known)
        with self._staging() as staging:
            missing = await asyncio.to_thread(self._missing, manifest, variant, wanted, kept, staging)
            fetch = AssetFetch(connection, known, variant, f"generation {manifest.info.generation}", self._seen.sizes)
            if missing and wanted.allow is not None:
                wanted.allow(await fetch.cost(missing))
            fetched = await fetch.bring(missing, staging)
            self._seen = SeenBundle()
            path = await asyncio.to_thread(finish, staging)
        return FetchedBundle(open_bundle(path, self.trusted), fetched.fetched_bytes, fetched.assets, fetched.patches)

    def _missing(
        self, manifest: Manifest, variant: str, wanted: Wanted, kept: Bundle | None, staging: Path
    ) -> list[MissingAsset]:
        """What has to be fetched, after linking what earlier bundles have into `staging`."""
        missing = []
        for name, (file, size) in manifest.device_files(variant, wanted.blocks(manifest)).items():
            if kept is not None and _holds(kept, file):
                continue
            if not self._link_present(file, size, staging):
                missing.append(MissingAsset(name, file, size))
        return list({asset.reference: asset for asset in missing}.values())

    def install_local(
        self, bundle: Path, variant: str = AUTO, target: str | None = None, *, allow_older: bool = False
    ) -> Bundle:
        """Verify, copy and self-test a bundle directory and make it the one that this device starts with.

        A running device keeps its bundle until it is restarted. A bundle that was refused here is tried again. Raises
        BundleError (OlderBundle among them), SignatureError, TableError, SelfTestError or BackendError; then nothing
        has changed.
        """
        given = open_bundle(bundle, self.trusted)
        if not allow_older:
            _check_order(self._present(), given.manifest, str(bundle))
        variant = choose_variant(given.manifest, variant, target)
        final = self._path(given.digest)
        installed = self._intact(final, variant)
        if installed is None:
            with self._staging() as staging:
                for reference, _ in given.manifest.device_files(variant).values():
                    write_atomic(asset_path(staging, reference), given.read(reference))
                signature = given.path / SIGNATURE
                text = minisign.read_signature(signature) if signature.exists() else ""
                self._finish(staging, final, (given.path / MANIFEST).read_bytes(), text)
            installed = open_bundle(final, self.trusted)
        _copy_tables(given, installed)
        asyncio.run(self_test_in_child(installed, variant, RuntimeOptions()))
        error = self_test(Prefix(installed, variant))
        self.trials.forgive(installed.digest)
        self.trials.adopt(installed)
        self.trials.note(
            "installed", generation=given.manifest.info.generation, digest=given.digest, self_test_error=error
        )
        return installed

    def _link_present(self, reference: str, size: int, staging: Path) -> bool:
        """Link an asset that an earlier bundle has; False if none has it intact."""
        for directory in self._bundles.iterdir():
            path = asset_path(directory, reference)
            if directory == staging or not path.is_file():
                continue
            try:
                data = read_bounded(path, size, BundleError)
                check_asset(reference, size, data, str(path))
            except BundleError:
                continue
            target = asset_path(staging, reference)
            if not target.exists():  # two blocks may be the same file
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(path, target)
                except OSError:
                    write_atomic(target, data)  # this file system has no links
            return True
        return False

    def _known(self) -> list[Bundle]:
        """Intact manifests on this disk, the newest generation first."""
        found = []
        for directory in self._bundles.iterdir() if self._bundles.exists() else ():
            try:
                found.append(open_bundle(directory, self.trusted))
            except FormatError:
                continue
        return sorted(found, key=lambda bundle: -bundle.manifest.info.generation)

    def _present(self) -> Bundle | None:
        try:
            return self.current()
        except FormatError:
            return None  # damaged: any other bundle is better

    def _open(self, digest: str) -> Bundle:
        bundle = open_bundle(self._path(digest), self.trusted)
        if bundle.digest != digest:
            raise BundleError(f"{bundle.path}: not the bundle that was installed there; remove the directory")
        return bundle

    def _intact(self, path: Path, variant: str) -> Bundle | None:
        """The bundle in a directory if everything it runs is there; a damaged one is removed."""
        bundle = self._readable(path)
        if bundle is None:
            return None
        if not all(_holds(bundle, file) for file, _ in bundle.manifest.device_files(variant).values()):
            shutil.rmtree(path)
            return None
        return bundle

    def _readable(self, path: Path) -> Bundle | None:
        """The bundle in a directory; one with a damaged manifest is removed."""
        if not path.exists():
            return None
        try:
            return open_bundle(path, self.trusted)
        except FormatError:
            shutil.rmtree(path)
            return None

    def _path(self, digest: str) -> Path:
        return self._bundles / digest.split(":")[1][:16]

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        self._bundles.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=self._bundles, prefix=_STAGING))
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _finish(self, staging: Path, final: Path, manifest: bytes, signature: str) -> Path:
        """Write the manifest, now that all assets are complete, and move the directory into place; returns it."""
        if signature:
            write_atomic(staging / SIGNATURE, signature.encode())
        write_atomic(staging / MANIFEST, manifest)
        os.rename(staging, final)
        return final


def _holds(bundle: Bundle, reference: str) -> bool:
    """Whether a file is there, as it was written."""
    try:
        bundle.read(reference)
    except BundleError:
        return False
    return True


def _add(staging: Path, final: Path) -> Path:
    """Move files, each of them complete, into an existing bundle; returns its directory."""
    for path in staging.glob(f"{ASSETS}/*/*"):
        target = final / path.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    return final


def _check_order(present: Bundle | None, coming: Manifest, source: str) -> None:
    if present is not None and coming.info.generation < present.manifest.info.generation:
        raise OlderBundle(
            f"{source}: generation {coming.info.generation} is older than {present.manifest.info.generation}, "
            "which is in use; not a rollback"
        )


def check_same_ends(present: Bundle, coming: Bundle) -> None:
    """Check that a new bundle fits: windows are cut for the present one, whose embeddings the memory matches in width.

    Raises BundleError.
    """
    ends = [
        (
            info.front_end.sample_rate,
            info.front_end.window_samples,
            info.front_end.hop_samples,
            info.encoder.embedding_dim,
        )
        for info in (present.manifest.info, coming.manifest.info)
    ]
    if ends[0] != ends[1]:
        raise BundleError(f"{coming.path}: its windows or embeddings have another size; restart the device to run it")


def _copy_tables(given: Bundle, installed: Bundle) -> None:
    """Copy the tables of a bundle directory, each checked first. Raises BundleError or TableError."""
    for target, cost in given.manifest.info.targets.items():
        path = given.path / cost.table
        if not path.exists():
            continue
        given.table(target)
        for source in (path, signature_path(path)):
            if source.exists():
                write_atomic(installed.path / source.relative_to(given.path), source.read_bytes())


def has_bundle(state: Path) -> bool:
    """Whether a bundle has run from this state directory."""
    return Trials(state).known().current is not None
