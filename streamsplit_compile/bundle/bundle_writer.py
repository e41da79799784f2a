"""Writing bundles: assets by digest, the manifest last, a directory that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime_edge.base.files import fsync_directory, read_bounded, write_atomic
from runtime_edge.errors import BundleError, SignatureError, UsageError
from runtime_edge.formats import manifest as manifests
from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import MANIFEST, SIGNATURE, Bundle, asset_path, open_bundle
from runtime_edge.formats.manifest import Manifest
from runtime_edge.formats.minisign import signature_path


@contextmanager
def staging_directory(out: Path) -> Iterator[Path]:
    """A temporary directory beside `out` that replaces it when the block ends without an error.

    Only an older bundle is replaced. Raises UsageError if anything else is at `out`, or if it cannot be written.
    """
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists and is not a bundle; choose another -o")
    if Path.cwd().is_relative_to(out.resolve()):
        raise UsageError(f"{out}: a bundle cannot take the place of the directory you are in; choose another -o")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as exc:
        raise UsageError(f"{out}: cannot be written ({exc.strerror}); choose another -o") from None
    try:
        staging.chmod(0o755)
        yield staging
        _swap(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_asset(root: Path, name: str, data: bytes) -> str:
    """Store `data` under its digest; returns its reference `sha256:<hex>/<name>`."""
    reference = manifests.asset_ref(name, data)
    path = asset_path(root, reference)
    if not path.exists():
        write_atomic(path, data)
    return reference


def link_asset(base: Bundle, root: Path, reference: str) -> None:
    """Link an asset from another bundle, without reading it if the file system allows that.

    Its digest is checked when it is read: every linked model runs before the new bundle is complete.
    """
    path = asset_path(root, reference)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(asset_path(base.path, reference), path)
    except OSError:
        write_atomic(path, base.read(reference))


def write_manifest(root: Path, manifest: Manifest, key: minisign.SecretKey | None) -> bytes:
    """Write manifest.json and, with a key, its signature; returns the manifest's bytes."""
    data = manifests.encode(manifest)
    manifests.decode(data)
    if key is not None:
        _sign(root, manifest, data, key)
    write_atomic(root / MANIFEST, data)
    return data


def renew_signature(bundle: Bundle, key: minisign.SecretKey) -> bool:
    """Sign a bundle's manifest unless this key has signed it already; returns whether that was needed.

    The rest of the bundle stays as it is. Raises BundleError when the manifest is no longer the one that was opened.
    """
    try:
        open_bundle(bundle.path, key.public)
        return False
    except SignatureError:
        data = read_bounded(bundle.path / MANIFEST, manifests.MAX_MANIFEST_BYTES, BundleError)
    if manifests.digest(data) != bundle.digest:
        raise BundleError(f"{bundle.path / MANIFEST}: has changed since it was opened")
    _sign(bundle.path, bundle.manifest, data, key)
    return True


def write_table(root: Path, path: str, data: bytes, key: minisign.SecretKey | None) -> None:
    """Write a splitter table `tables/<target>.json` and, with a key, its signature."""
    file = root / path
    write_atomic(file, data)
    if key is not None:
        write_atomic(signature_path(file), minisign.sign(data, key, f"table:{file.stem}").encode())


def _sign(root: Path, manifest: Manifest, data: bytes, key: minisign.SecretKey) -> None:
    comment = f"generation:{manifest.info.generation} encoder:{manifest.info.encoder.id}"
    write_atomic(root / SIGNATURE, minisign.sign(data, key, comment).encode())


def _swap(staging: Path, out: Path) -> None:
    old = None
    if out.exists():
        old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old."))
        out.rename(old / out.name)
    staging.rename(out)
    fsync_directory(out.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
