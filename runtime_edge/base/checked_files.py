"""Files of a state directory whose damage is noticed: each has its checksum in `<file>.sha256` beside it.

    write_checked(path, data)
    data = read_checked(path, limit_bytes)      # None if it was never written

The checksum is written first, with that of the previous contents in its second line: whenever the process dies, the
file matches one of the two. A file that is missing although its checksum exists counts as damaged. A file without a
checksum, as earlier versions wrote it, or with a damaged checksum, is accepted as it is and gets a new one. A bundle is
checked as a whole directory, except its assets, whose digests are in the manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from runtime_edge.base.files import read_bounded, write_atomic
from runtime_edge.errors import FormatError

_LOG = logging.getLogger(__name__)
_MAX_CHECKSUM_BYTES = 1024
_ASSETS = "shared_assets"
_NOTHING = "nothing"
_PART_BYTES = 1 << 20
_Contents = TypeVar("_Contents")


def checksum_path(path: Path) -> Path:
    """Path of a file's checksum."""
    return path.with_name(path.name + ".sha256")


def write_checked(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file and its checksum so that both stay valid if the process dies or the power fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, hashlib.sha256(data).hexdigest()):
        write_atomic(path, data, mode)


@contextlib.contextmanager
def replacing(path: Path, digest: str) -> Iterator[None]:
    """Write the checksum of the file that the block writes; until then, what is there now (or nothing) is valid too."""
    before = digest_of(path) if path.exists() else _NOTHING
    write_atomic(checksum_path(path), _encode([digest, before]))
    yield
    if before == _NOTHING:
        write_atomic(checksum_path(path), _encode([digest]))  # from now on the file must exist


def read_checked(path: Path, limit_bytes: int, error: type[FormatError] = FormatError, fix: str = "") -> bytes | None:
    """Read a whole file, None if there is none. Raises `error`, ending with `fix`, if it is not as it was written."""

    def read() -> tuple[bytes, str]:
        data = read_bounded(path, limit_bytes, error)
        return data, hashlib.sha256(data).hexdigest()

    return _compared(path, read, error, fix)


def check(path: Path, error: type[FormatError] = FormatError, fix: str = "") -> bool:
    """Compare a file or a bundle's directory with its checksum; False if there is none.

    Raises `error`, ending with `fix`, if it is not as it was written.
    """

    def read() -> tuple[bool, str]:
        try:
            return True, digest_of(path)
        except OSError as exc:
            raise error(f"{path}: cannot be read ({exc.strerror or exc}){fix}") from exc

    return _compared(path, read, error, fix) or False


def remove_checked(path: Path) -> None:
    """Remove a file and its checksum."""
    checksum_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and digests of all files in a bundle's directory except its assets."""
    whole = hashlib.sha256()
    if not path.is_dir():
        with path.open("rb") as file:
            while part := file.read(_PART_BYTES):
                whole.update(part)
        return whole.hexdigest()
    for file_path in sorted(path.rglob("*")):
        name = file_path.relative_to(path).as_posix()
        if file_path.is_file() and not name.startswith(f"{_ASSETS}/"):
            whole.update(f"{digest_of(file_path)}  {name}\n".encode())
    return whole.hexdigest()


def _compared(
    path: Path, read: Callable[[], tuple[_Contents, str]], error: type[FormatError], fix: str
) -> _Contents | None:
    """The contents, once they match. Reads them twice if need be: another process may just be writing."""
    for _ in range(2):
        # The file is read before its checksum, because the checksum is written first.
        contents, digest = read() if path.exists() else (None, _NOTHING)
        known = _decode(checksum_path(path))
        if known is None:
            if digest != _NOTHING:
                _adopt(path, digest)
            return contents
        if digest in known:
            return contents
    what = "is missing" if digest == _NOTHING else "is damaged"
    beside = checksum_path(path).name
    raise error(f"{path}: {what}: {beside} was written for another one; put back a copy, or remove both files{fix}")


def _encode(digests: list[str]) -> bytes:
    return "".join(f"{digest} {zlib.crc32(digest.encode()):08x}\n" for digest in digests).encode()


def _decode(path: Path) -> list[str] | None:
    """The digests in a checksum file; None if it is missing, or damaged, which is logged."""
    try:
        data = read_bounded(path, _MAX_CHECKSUM_BYTES) if path.exists() else None
    except FormatError:
        data = b""
    if data is None:
        return None
    digests = [line.partition(" ")[0] for line in data.decode(errors="replace").splitlines()]
    if digests and data == _encode(digests):
        return digests
    _LOG.warning("%s: damaged; its file is used unchecked", path)
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def _adopt(path: Path, digest: str) -> None:
    """Give a file the checksum it lacks, unless another process just has; a failing disk is not an error here."""
    own = path.with_name(f".{checksum_path(path).name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        write_atomic(own, _encode([digest]))
        try:
            os.link(own, checksum_path(path))
        finally:
            own.unlink()
