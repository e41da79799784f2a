"""Opening a bundle directory: nothing is handed out before its signature and digest have been checked.

>>> bundle = open_bundle(Path("bundle/"))            # doctest: +SKIP
>>> data = bundle.block_bytes("block-00", "onnx-fp32")  # doctest: +SKIP
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from runtime_edge.base.files import read_bounded
from runtime_edge.errors import BundleError, SignatureError, TableError
from runtime_edge.formats import manifest as manifests
from runtime_edge.formats import minisign
from runtime_edge.formats.manifest import Manifest
from runtime_edge.formats.minisign import signature_path
from runtime_edge.formats.records.table import MAX_TABLE_BYTES, SplitterTable

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.minisig"
ASSETS = "shared_assets"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest has been read and, if a key is trusted, verified."""

    path: Path
    manifest: Manifest
    digest: str
    """`sha256:<hex>` of manifest.json, which identifies this very bundle."""
    signed_by: str | None
    """Trusted comment of the signature, if it was checked."""
    trusted: minisign.PublicKey | None = None
    """The key that must have signed it, and must sign its tables."""

    def read(self, reference: str) -> bytes:
        """The bytes of an asset `sha256:<hex>/<name>`, digest checked. Raises BundleError."""
        size = self.manifest.assets().get(reference)
        if size is None:
            raise BundleError(f"{self.path}: {reference} is not an asset of this bundle")
        path = asset_path(self.path, reference)
        data = _read_plain(self.path, path, size)
        check_asset(reference, size, data, str(path))
        return data

    def block_bytes(self, block: str, variant: str) -> bytes:
        """The compiled file of one block, digest checked. Raises BundleError."""
        return self.read(self.manifest.variant(block, variant).file)

    def blocks_there(self, variant: str) -> int:
        """How many of the first blocks are here: a device fetches only those that it runs. Raises BundleError."""
        for index, block in enumerate(self.manifest.info.blocks):
            if not asset_path(self.path, self.manifest.variant(block, variant).file).is_file():
                return index
        return len(self.manifest.info.blocks)

    def table(self, target: str) -> SplitterTable:
        """The splitter table shipped for a target. Raises BundleError, SignatureError or TableError."""
        costs = self.manifest.info.targets
        if target not in costs:
            there = ", ".join(sorted(costs))
            raise BundleError(f"{self.path}: compiled for {there}, not for {target!r}; give one of these as --target")
        path = self.path / costs[target].table
        data, _ = _read_signed(self.path, path, MAX_TABLE_BYTES, self.trusted)
        table = SplitterTable.from_json(data, str(path))
        if table.target != target:
            raise BundleError(f"{path}: target is {table.target!r}, expected {target!r}")
        try:
            table.check_cuts([cut.name for cut in self.manifest.info.cuts])
        except TableError as exc:
            raise TableError(f"{path}: {exc}") from None
        return table

    def verify_assets(self) -> int:
        """Check every asset's digest; returns the bytes read. Raises BundleError at the first wrong one."""
        return sum(len(self.read(reference)) for reference in sorted(self.manifest.assets()))


def open_bundle(path: Path, trusted: minisign.PublicKey | None = None) -> Bundle:
    """Read and check the manifest of a bundle directory; with `trusted`, an unsigned bundle is refused as well.

    Raises BundleError or SignatureError.
    """
    if not path.is_dir():
        raise BundleError(f"{path}: no such bundle directory; make one with `ssc compile encoder.pt -o {path}`")
    data, comment = _read_signed(path, path / MANIFEST, manifests.MAX_MANIFEST_BYTES, trusted)
    manifest = manifests.decode(data, str(path / MANIFEST))
    if comment is not None:
        check_comment(comment, manifest, str(path / SIGNATURE))
    return Bundle(path, manifest, manifests.digest(data), comment, trusted)


def check_comment(comment: str, manifest: Manifest, source: str) -> None:
    """Raise SignatureError unless the trusted comment of a manifest's signature states the manifest's generation."""
    if f"generation:{manifest.info.generation}" not in comment.split():
        raise SignatureError(
            f"{source}: signed for another generation: the trusted comment says {comment!r} on a manifest of "
            f"generation {manifest.info.generation}"
        )


def asset_path(root: Path, reference: str) -> Path:
    """Path of `sha256:<hex>/<name>` below a bundle's directory. Raises BundleError for anything else."""
    if not re.fullmatch(r"sha256:[0-9a-f]{64}/[a-z0-9][a-z0-9._-]{0,63}", reference):
        raise BundleError(f"asset reference {reference!r}: expected sha256:<64 hex digits>/<file name>")
    directory, name = reference.split("/")
    return root / ASSETS / directory.replace(":", "-") / name


def check_asset(reference: str, size: int, data: bytes, source: str) -> None:
    """Raise BundleError unless `data` has the size and digest that its reference promises."""
    if len(data) != size:
        raise BundleError(f"{source}: {len(data)} bytes, but the manifest says {size}; fetch or compile it again")
    if manifests.asset_ref(reference.split("/")[1], data) != reference:
        raise BundleError(f"{source}: digest does not match the manifest; fetch or compile it again")


def _read_signed(
    root: Path, path: Path, limit_bytes: int, trusted: minisign.PublicKey | None
) -> tuple[bytes, str | None]:
    """Read a file and, if a key is trusted, verify its signature; returns the trusted comment as well."""
    data = _read_plain(root, path, limit_bytes)
    if trusted is None:
        return data, None
    signature = signature_path(path)
    _refuse_links(root, signature)
    if not signature.exists():
        raise SignatureError(
            f"{signature}: missing, but the signature of key {trusted.hex_id} is required; sign with it "
            "(--key), or take what its owner has signed"
        )
    return data, minisign.verify(data, minisign.read_signature(signature), trusted, str(signature))


def _read_plain(root: Path, path: Path, limit_bytes: int) -> bytes:
    """Read a file below `root`, refusing links on the way. Raises BundleError."""
    _refuse_links(root, path)
    return read_bounded(path, limit_bytes, BundleError)


def _refuse_links(root: Path, path: Path) -> None:
    inside = [path, *path.parents]
    for part in inside[: inside.index(root)]:
        if part.is_symlink():
            raise BundleError(f"{part}: a link; bundles hold plain files only")
