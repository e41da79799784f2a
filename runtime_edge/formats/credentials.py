"""How a connection identifies itself, and which brokers it trusts: nkeys and TLS.

credentials = Credentials(nkey=Path("pi-1.creds"), tls_ca=Path("ca.pem"))
await Client().connect("tls://gateway:4222", **credentials.options("tls://gateway:4222"))
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats.errors
import nkeys

from runtime_edge.base.broker_errors import is_refusal, reason
from runtime_edge.base.files import read_bounded
from runtime_edge.base.text import printable, without_password
from runtime_edge.errors import AccessError, FormatError, LinkError, UsageError

_MAX_BYTES = 4096
_SCHEMES = ("nats", "tls")
_REFUSED = ("authorization violation", "user authentication", "authentication expired", "account authentication")


@dataclass(frozen=True)
class Credentials:
    """How to connect. By default without credentials, in clear text or with the system's certificate authorities."""

    nkey: Path | None = None
    """File with the Ed25519 seed that proves this side's identity (`SU...`, as `ssc server device add` writes)."""
    tls_ca: Path | None = None
    """PEM file of the authorities, or of the very certificate, to check the broker's certificate against."""
    tls_cert: Path | None = None
    """PEM file of this side's certificate, if the broker asks for one."""
    tls_key: Path | None = None
    check_hostname: bool = True
    """False only for a broker on this machine whose certificate is `tls_ca` itself."""

    def options(self, url: str) -> dict[str, Any]:
        """Arguments for the library's `connect`. Raises UsageError or FormatError naming the file or the option."""
        options: dict[str, Any] = {}
        if self.nkey is not None:
            options["nkeys_seed_str"] = read_seed(self.nkey)
        if servers(url)[0].startswith("tls://"):
            # Checked before connecting: otherwise a broker that merely claimed not to know TLS would be believed.
            options |= {"tls": self._tls(), "tls_handshake_first": True}
        elif self.tls_ca or self.tls_cert:
            raise UsageError(
                f"broker {without_password(url)}: a TLS file was given, but only tls:// addresses are encrypted"
            )
        return options

    def _tls(self) -> ssl.SSLContext:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("--tls-cert and --tls-key go together: give both or neither")
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
        except (OSError, ssl.SSLError) as exc:
            raise FormatError(f"{self.tls_ca}: not PEM certificates ({exc.strerror or exc})") from None
        if self.tls_ca is not None:
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = self.check_hostname
        if self.tls_cert is not None:
            try:
                context.load_cert_chain(self.tls_cert, self.tls_key)
            except (OSError, ssl.SSLError) as exc:
                why = exc.strerror or exc
                raise FormatError(f"{self.tls_cert}, {self.tls_key}: not a certificate and its key ({why})") from None
        return context


@dataclass(frozen=True)
class Address:
    """A broker's address, and the credentials for it."""

    url: str = field(repr=False)
    credentials: Credentials = field(default_factory=Credentials)

    def __str__(self) -> str:
        return without_password(self.url)


def servers(url: str) -> list[str]:
    """The broker addresses in `url`: one, or several of a cluster, separated by commas.

    Raises UsageError if there is none, if one is not an address, or if only some of them are encrypted.
    """
    found = [one.strip() for one in url.split(",") if one.strip()]
    if not found:
        raise UsageError(f"broker {url!r}: an address is needed, such as nats://gateway:4222")
    for one in found:
        if wrong := _wrong(one):
            raise UsageError(f"broker {without_password(url)}: {wrong}; an address is such as nats://gateway:4222")
    if len({one.startswith("tls://") for one in found}) > 1:
        raise UsageError(f"broker {without_password(url)}: give all of a cluster's addresses as tls://, or none")
    return found


def _wrong(address: str) -> str:
    """What is wrong with one broker's address; empty if nothing is."""
    try:
        parts = urlsplit(address if "://" in address else f"nats://{address}")
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        return "the port is not a number from 1 to 65535"
    if parts.scheme not in _SCHEMES:
        return f"{parts.scheme}:// is not one of {', '.join(f'{scheme}://' for scheme in _SCHEMES)}"
    if not parts.hostname or re.search(r"\s", address):
        return "no host is named"
    return "nothing may follow the port" if parts.path.strip("/") or parts.query or parts.fragment else ""


def new_seed() -> str:
    """A fresh Ed25519 user seed from the system's randomness, 58 characters that begin with `SU`."""
    return str(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER).decode())


def public_key(seed: str) -> str:
    """The public half of a seed, 56 characters that begin with `U`. Raises FormatError."""
    try:
        prefix, raw = nkeys.decode_seed(seed.encode())
        intact = nkeys.encode_seed(raw, prefix).decode() == seed  # the library itself does not check the checksum
        public = nkeys.from_seed(bytearray(seed.encode())).public_key.decode()
    except Exception as exc:
        # Depending on the fault, the library raises its own errors or those of base64 and pynacl.
        raise FormatError(f"not an nkey seed ({type(exc).__name__})") from None
    if not intact:
        raise FormatError("not an nkey seed (its checksum does not match)")
    if prefix != nkeys.PREFIX_BYTE_USER:
        raise FormatError("not an nkey seed of a user, but of an account or operator")
    return str(public)


def credentials_file(seed: str, whose: str) -> bytes:
    """The contents of a credentials file: a comment with the seed's owner and its server, and the seed."""
    return f"# {printable(whose)}\n{seed}\n".encode(errors="backslashreplace")


def read_seed(path: Path) -> str:
    """The seed in a credentials file. Raises FormatError naming the file."""
    lines = read_bounded(path, _MAX_BYTES).decode("utf-8-sig", errors="replace").splitlines()
    seed = "\n".join(line for line in lines if not line.startswith("#")).strip()
    try:
        public_key(seed)
    except FormatError as exc:
        raise FormatError(f"{path}: {exc}; make one with `ssc server device add`") from None
    return seed


def named(path: Path) -> str:
    """A credentials file's name and comment, for messages. Raises FormatError."""
    first = read_bounded(path, _MAX_BYTES).decode("utf-8-sig", errors="replace").partition("\n")[0]
    return f"{path} ({printable(first[1:].strip())})" if first.startswith("#") else str(path)


def explain(url: str, credentials: Credentials, exc: Exception) -> LinkError:
    """The error to raise when a connection failed with `exc`: AccessError if retrying soon is useless."""
    text, url = str(exc) or type(exc).__name__, without_password(url)
    if isinstance(exc, asyncio.TimeoutError):
        tls = "" if url.startswith("tls://") else ", and does it ask for TLS (tls://)?"
        return LinkError(
            f"broker {url}: cannot connect (no answer in time); is a broker (`ssc server run`) there{tls or '?'}"
        )
    if isinstance(exc, ssl.SSLCertVerificationError):
        return AccessError(f"broker {url}: its certificate is refused: {exc.verify_message}; see --tls-ca")
    if isinstance(exc, ssl.SSLError):
        return AccessError(f"broker {url}: no TLS with it ({exc.reason or text}); does it have a certificate?")
    if isinstance(exc, nats.errors.AuthorizationError) or any(word in text.lower() for word in _REFUSED):
        if credentials.nkey is None:
            return AccessError(f"broker {url}: asks for credentials; make them with `ssc server device add`")
        return AccessError(
            f"broker {url}: refuses the credentials {named(credentials.nkey)}; unknown or revoked there "
            "(`ssc server device list`)"
        )
    if is_refusal(exc):
        return LinkError(f"broker {url}: {reason(exc)}")
    return LinkError(f"broker {url}: cannot connect ({text}); is a broker (`ssc server run`) there?")
