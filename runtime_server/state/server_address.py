"""The address of a server's broker, kept in its state directory so that a command with `--state` needs no address."""

from __future__ import annotations

from pathlib import Path

import msgspec

from runtime_edge.base.checked_files import read_checked, write_checked
from runtime_edge.formats import strict
from runtime_edge.formats.credentials import Address, Credentials

_FILE = "broker_address.json"
_MAX_BYTES = 1 << 16
_FIX = ": start the server again, or give --broker"


class KeptAddress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The broker that the server used last, and the credentials for it; paths are absolute, or empty."""

    url: str
    nkey: str = ""
    """Empty: `server.nkey` in the same directory."""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    check_hostname: bool = True


def keep_address(root: Path, address: Address) -> None:
    """Record which broker the server of a state directory uses."""
    own, who = root / "server.nkey", address.credentials
    kept = KeptAddress(
        url=address.url,
        nkey="" if who.nkey == own else _text(who.nkey),
        tls_ca=_text(who.tls_ca),
        tls_cert=_text(who.tls_cert),
        tls_key=_text(who.tls_key),
        check_hostname=who.check_hostname,
    )
    write_checked(root / _FILE, msgspec.json.format(msgspec.json.encode(kept)) + b"\n", 0o600)


def kept_address(root: Path) -> Address | None:
    """The address that `keep_address` recorded; None if no server has run. Raises FormatError."""
    path, own = root / _FILE, root / "server.nkey"
    data = read_checked(path, _MAX_BYTES, fix=_FIX)
    if data is None:
        return None
    kept = strict.decode(data, KeptAddress, str(path), _MAX_BYTES, fix=_FIX)
    nkey = _path(kept.nkey) or (own if own.exists() else None)
    tls = (_path(kept.tls_ca), _path(kept.tls_cert), _path(kept.tls_key))
    return Address(kept.url, Credentials(nkey, *tls, check_hostname=kept.check_hostname))


def _text(path: Path | None) -> str:
    return "" if path is None else str(path.resolve())


def _path(text: str) -> Path | None:
    return Path(text) if text else None
