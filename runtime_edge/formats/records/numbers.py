"""Keeps the highest accepted number of each signed record in a file, so that an older record put back is refused.

    numbers = RecordNumbers(state / "numbers.json")
    numbers.accept(record, trusted, "table _all.rpi4")      # raises OldRecord

Numbers belong to the key that signed them. With another key they start over: records of the earlier key are refused.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from runtime_edge.base.files import write_atomic
from runtime_edge.errors import FormatError, OldRecord
from runtime_edge.formats import strict
from runtime_edge.formats.manifest import Digest
from runtime_edge.formats.minisign import PublicKey
from runtime_edge.formats.records.envelope import Number, Record
from runtime_edge.formats.strict import Strict

_LOG = logging.getLogger(__name__)
_MAX_BYTES = 16 << 20


class _Highest(Strict, frozen=True, kw_only=True):
    number: Number
    digest: Digest
    """Digest of what was signed with that number."""


class _Numbers(Strict, frozen=True, kw_only=True):
    format: Literal["streamsplit.numbers/1"] = "streamsplit.numbers/1"
    signer: Annotated[str, Meta(max_length=64)]
    """The Ed25519 public key, as hex."""
    unnumbered: bool
    """Whether records of earlier versions, without a number, are accepted under keys that are not in `highest`."""
    highest: dict[str, _Highest]
    """By kind and key."""


class _File(Strict, frozen=True, kw_only=True):
    digest: Digest
    """Digest of the bytes of `numbers`."""
    numbers: msgspec.Raw


class RecordNumbers:
    """The numbers of one state directory. Several objects may share its file in one thread, if their kinds differ."""

    def __init__(self, path: Path, on_damage: Callable[[FormatError], None] | None = None) -> None:
        """A damaged or missing file is reported to `on_damage`, and started over with the numbers in use.

        From then on no record without a number is accepted.
        """
        self._path, self._on_damage = path, on_damage or _warn
        self._own: dict[str, _Highest] = {}
        """Numbers accepted by this object, in case the disk is full."""
        self._signer = ""

    def highest(self, name: str, signer: PublicKey) -> int:
        """The last number accepted under a name (`Record.name`); 0 if there was none."""
        found = self._read(signer).highest.get(name)
        return 0 if found is None else found.number

    def accept(self, record: Record, signer: PublicKey, source: str) -> None:
        """Note the number of a record that this key has signed.

        Raises OldRecord, and notes nothing, if a higher number was accepted, or the same one with other contents.
        """
        known = self._read(signer)
        before = known.highest.get(record.name)
        if before is None:
            if record.number == 0 and not known.unnumbered:
                raise OldRecord(f"{source}: number: none, as in earlier versions; push it again with this version")
        elif record.number < before.number:
            raise OldRecord(
                f"{source}: number: {record.number} is older than {before.number}, which was accepted; an old record "
                "was put back"
            )
        elif record.number == before.number and record.digest != before.digest:
            raise OldRecord(f"{source}: number: {record.number} was accepted with other contents; push it again")
        self._note(known, record)

    def in_use(self, record: Record, signer: PublicKey) -> None:
        """Note a record in use: it was accepted, whatever the file says. If it has a number, the file once existed."""
        if record.number and not self._own and not self._path.exists():
            self._start_over(FormatError(f"{self._path}: is missing"))
        if record.number > self.highest(record.name, signer):
            self._note(self._read(signer), record)

    def _note(self, known: _Numbers, record: Record) -> None:
        if record.number == 0:
            return
        self._own[record.name] = _Highest(number=record.number, digest=record.digest)
        after = replace(known, highest={**known.highest, **self._own})
        if after == known and self._path.exists():
            return
        self._write(after)

    def _write(self, numbers: _Numbers) -> None:
        data = msgspec.json.encode(numbers)
        try:
            write_atomic(self._path, msgspec.json.encode(_File(digest=_digest(data), numbers=msgspec.Raw(data))))
        except OSError as exc:
            _LOG.warning("%s: cannot be written (%s); a restart forgets which records are old", self._path, exc)

    def _read(self, signer: PublicKey) -> _Numbers:
        """What is known about this signer."""
        name = signer.key.hex()
        if name != self._signer:
            self._own, self._signer = {}, name
        known = self._file()
        if known is None:
            known = _Numbers(signer=name, unnumbered=True, highest={})
        elif known.signer != name:
            known = _Numbers(signer=name, unnumbered=False, highest={})
        return replace(known, highest={**known.highest, **self._own})

    def _file(self) -> _Numbers | None:
        if not self._path.exists():
            return None
        try:
            file = strict.read(self._path, _File, _MAX_BYTES)
            if _digest(bytes(file.numbers)) != file.digest:
                raise FormatError(f"{self._path}: digest: not that of numbers; the file is damaged")
            return strict.decode(bytes(file.numbers), _Numbers, str(self._path), _MAX_BYTES)
        except FormatError as exc:
            return self._start_over(exc)

    def _start_over(self, damage: FormatError) -> _Numbers:
        self._on_damage(FormatError(f"{damage}; old records can be recognised only for those in use"))
        lost = _Numbers(signer="", unnumbered=False, highest={})
        self._write(lost)
        return lost


def _warn(exc: FormatError) -> None:
    _LOG.warning("%s", exc)


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
