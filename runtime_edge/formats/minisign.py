"""Ed25519 signatures in minisign's formats: `minisign` can verify ours, and we can verify those made by `minisign`.

>>> secret = generate_key()
>>> signature = sign(b"manifest", secret, "generation:1")
>>> verify(b"manifest", signature, secret.public)
'generation:1'

Signatures are of the pre-hashed kind (BLAKE2b-512), the default of minisign since 0.10. They carry no time,
so signing the same bytes twice gives the same signature.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from runtime_edge.base.files import read_text, write_atomic
from runtime_edge.errors import SignatureError, UsageError

_MAX_KEY_FILE_BYTES = 4096
_MAX_SIGNATURE_BYTES = 8192
_UNTRUSTED = "untrusted comment: "
_TRUSTED = "trusted comment: "


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key with minisign's 8-byte key id."""

    key_id: bytes
    key: bytes

    @property
    def hex_id(self) -> str:
        """The key id as minisign prints it."""
        # Stored as a little-endian integer.
        return f"{int.from_bytes(self.key_id, 'little'):016X}"

    def to_text(self) -> str:
        """The contents of a minisign `.pub` file."""
        body = base64.b64encode(b"Ed" + self.key_id + self.key).decode()
        return f"{_UNTRUSTED}minisign public key {self.hex_id}\n{body}\n"

    @classmethod
    def from_text(cls, text: str, source: str = "public key") -> PublicKey:
        """Read a `.pub` file or its bare base64 line. Raises SignatureError."""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        blob = _decode(lines[-1] if lines else "", source, "public key")
        if len(blob) != 42 or blob[:2] != b"Ed":
            raise SignatureError(f"{source}: not a minisign Ed25519 public key; make one with `ssc key new`")
        return cls(blob[2:10], blob[10:])


@dataclass(frozen=True)
class SecretKey:
    """An Ed25519 key pair (seed only; the public half is derived)."""

    key_id: bytes
    seed: bytes

    @property
    def public(self) -> PublicKey:
        """The public half, to hand to devices."""
        return PublicKey(self.key_id, bytes(SigningKey(self.seed).verify_key))

    def to_text(self) -> str:
        """The contents of an unencrypted minisign secret key file (as `minisign -G -W` writes)."""
        pair = self.key_id + self.seed + self.public.key
        checksum = hashlib.blake2b(b"Ed" + pair, digest_size=32).digest()
        blob = b"Ed" + b"\0\0" + b"B2" + bytes(32 + 8 + 8) + pair + checksum
        return f"{_UNTRUSTED}minisign unencrypted secret key\n{base64.b64encode(blob).decode()}\n"

    @classmethod
    def from_text(cls, text: str, source: str = "secret key") -> SecretKey:
        """Read an unencrypted minisign secret key file. Raises SignatureError."""
        lines = [line.strip() for line in text.splitlines()]
        blob = _decode(lines[1] if len(lines) > 1 else "", source, "secret key")
        if len(blob) != 158 or blob[:2] != b"Ed" or blob[4:6] != b"B2":
            raise SignatureError(f"{source}: not a minisign secret key; make one with `ssc key new`")
        if blob[2:4] != b"\0\0":
            raise SignatureError(f"{source}: encrypted; make an unencrypted key with `minisign -G -W`")
        pair, checksum = blob[54:126], blob[126:]
        secret = cls(pair[:8], pair[8:40])
        # `minisign -G -W` leaves the checksum of an unencrypted key at zero.
        sums = (bytes(32), hashlib.blake2b(b"Ed" + pair, digest_size=32).digest())
        if checksum not in sums or secret.public.key != pair[40:]:
            raise SignatureError(f"{source}: checksum does not match; the file is damaged")
        return secret


def generate_key() -> SecretKey:
    """A new key pair from the operating system's randomness."""
    return SecretKey(os.urandom(8), os.urandom(32))


def sign(message: bytes, secret: SecretKey, trusted_comment: str) -> str:
    """Sign `message`; the trusted comment is signed with it and returned by `verify`."""
    if not trusted_comment.isprintable():
        raise SignatureError("trusted comment: must be one line of printable text")
    key = SigningKey(secret.seed)
    signature = key.sign(hashlib.blake2b(message).digest()).signature
    overall = key.sign(signature + trusted_comment.encode()).signature
    body = base64.b64encode(b"ED" + secret.key_id + signature).decode()
    return (
        f"{_UNTRUSTED}signature from streamsplit key {secret.public.hex_id}\n{body}\n"
        f"{_TRUSTED}{trusted_comment}\n{base64.b64encode(overall).decode()}\n"
    )


def verify(message: bytes, signature: str, public: PublicKey, source: str = "signature") -> str:
    """Check a minisign signature and return its trusted comment. Raises SignatureError."""
    lines = signature.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if len(lines) != 4 or not lines[0].startswith(_UNTRUSTED) or not lines[2].startswith(_TRUSTED):
        raise SignatureError(f"{source}: not a minisign signature")
    blob = _decode(lines[1], source, "signature line")
    overall = _decode(lines[3], source, "global signature line")
    if len(blob) != 74 or len(overall) != 64 or blob[:2] not in (b"ED", b"Ed"):
        raise SignatureError(f"{source}: not a minisign signature")
    if blob[2:10] != public.key_id:
        raise SignatureError(
            f"{source}: signed by key {PublicKey(blob[2:10], b'').hex_id}, but {public.hex_id} is trusted; if the "
            "signer is the right one, give its .pub with --pub, or remove trusted.pub from the state of a device that "
            "pinned another"
        )
    comment = lines[2][len(_TRUSTED) :]
    signed = hashlib.blake2b(message).digest() if blob[:2] == b"ED" else message
    try:
        key = VerifyKey(public.key)
        key.verify(signed, blob[10:])
        key.verify(blob[10:] + comment.encode(), overall)
    except BadSignatureError:
        raise SignatureError(f"{source}: the signature does not match the file; it was changed") from None
    return comment


def read_public_key(path: Path) -> PublicKey:
    """Read a `.pub` file. Raises SignatureError."""
    return PublicKey.from_text(read_text(path, _MAX_KEY_FILE_BYTES, SignatureError), str(path))


def read_secret_key(path: Path) -> SecretKey:
    """Read a secret key file. Raises SignatureError."""
    return SecretKey.from_text(read_text(path, _MAX_KEY_FILE_BYTES, SignatureError), str(path))


def read_signature(path: Path) -> str:
    """Read a `.minisig` file. Raises SignatureError."""
    return read_text(path, _MAX_SIGNATURE_BYTES, SignatureError)


def write_key_pair(secret: SecretKey, path: Path) -> Path:
    """Write `path` (readable by its owner alone) and `path` with the suffix `.pub`; returns the latter.

    Raises UsageError rather than overwrite a key.
    """
    public = path.with_suffix(".pub")
    if path == public:
        raise UsageError(f"{path}: the suffix .pub is for the public key; name the secret key otherwise")
    for file in (path, public):
        if file.exists():
            raise UsageError(f"{file}: exists; a key is never overwritten")
    write_atomic(path, secret.to_text().encode(), mode=0o600)
    write_atomic(public, secret.public.to_text().encode())
    return public


def _decode(line: str, source: str, what: str) -> bytes:
    try:
        blob = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        blob = b""
    # Decoding ignores unused bits; only one text is right for each value.
    if base64.b64encode(blob).decode() != line:
        raise SignatureError(f"{source}: the {what} is not base64")
    return blob


def signature_path(path: Path) -> Path:
    """Path of the signature of a bundle's file."""
    return path.with_name(f"{path.name}.minisig")
