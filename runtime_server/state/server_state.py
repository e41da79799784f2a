"""The files that a server keeps on its disk, each written atomically.

<state>/signing.key, signing.pub      made at the first start unless --key is given
<state>/signing_key.path              path of the key given by --key, in place of those two
<state>/held_out.key                  decides which windows judge releases; made at the first start
<state>/generations/00002/            bundles it compiled
<state>/weights/00002.pt              the weights from which each was compiled
<state>/trainer/checkpoint.pt          the state of training; another rank's windows in a file beside it
<state>/rollout.json                  which of them devices run, and how each release went
<state>/heads/4f0c1b...clips           windows of the clips a pushed head was fitted to: no release lowers its score
<state>/adaptations/pi-1.rpi4.json    the last adaptations that a device was sent, with which its frames are completed
<state>/numbers.json                  the number of each table, head, release and adaptation it signed last
<state>/ledger/0.json, 0.json.journal  which windows have been counted, by partition
<state>/suspects/0.trying              the frame that is being tried alone, by partition
<state>/broker_address.json            which broker the server uses (`server_address`)
<state>/broker/                       the embedded broker's streams

Each file except the broker's has its checksum beside it (`runtime_edge.base.checked_files`).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from runtime_edge.base.checked_files import check, checksum_path, read_checked, remove_checked, write_checked
from runtime_edge.base.files import fsync_directory, make_private, write_atomic
from runtime_edge.errors import FormatError, SignatureError
from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_server.state.ledger import PartitionedLedger

_LOG = logging.getLogger(__name__)
Tensors = Mapping[str, npt.NDArray[Any]]
_HELD_OUT_KEY_BYTES = 32
_KEY_ELSEWHERE = "signing_key.path"
_MAX_PATH_BYTES = 1 << 13


class ServerState:
    """A server's state directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for path in (root, *(root / name for name in ("generations", "weights", "broker"))):
            make_private(path)

    @property
    def head_clips(self) -> Path:
        """Where the clips of pushed heads are kept."""
        return head_clips_path(self.root)

    def signing_key(self, given: Path | None) -> minisign.SecretKey:
        """The key that signs releases, made on first use; a given key's path is recorded. Raises SignatureError."""
        elsewhere = self.root / _KEY_ELSEWHERE
        if given is not None:
            key = minisign.read_secret_key(given)
            write_checked(elsewhere, os.fsencode(given.resolve()) + b"\n")
            return key
        remove_checked(elsewhere)
        path = self.root / "signing.key"
        public = path.with_suffix(".pub")
        new = ": a new key is made, which devices that know the former one refuse"
        if not check(path, SignatureError, new):
            if public.exists():
                raise SignatureError(f"{path}: is missing; put back a copy, or remove {public.name} as well{new}")
            minisign.write_key_pair(minisign.generate_key(), path)
            check(path)
        key = minisign.read_secret_key(path)
        if not public.exists() or public.read_bytes() != key.public.to_text().encode():
            _LOG.warning("%s: missing or damaged; written again", public)
            write_atomic(public, key.public.to_text().encode())
        return key

    def held_out_key(self) -> bytes:
        """The key, 32 bytes, that chooses which windows judge releases; made on first use.

        Processes that share the directory get the same key. Raises FormatError.
        """
        path = self.root / "held_out.key"
        new = ": other windows judge from then on"
        if not check(path, FormatError, new):
            made = self.root / f".held_out.key.{secrets.token_hex(8)}"
            handle = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(_HELD_OUT_KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(made, path)
            made.unlink()
            fsync_directory(self.root)
            check(path, FormatError, new)
        key = path.read_bytes()
        if len(key) != _HELD_OUT_KEY_BYTES:
            raise FormatError(
                f"{path}: {len(key)} bytes, {_HELD_OUT_KEY_BYTES} expected; remove it to have a new one made"
            )
        return key

    def bundle_path(self, number: int) -> Path:
        """Where the bundle of a generation is kept."""
        return self.root / "generations" / f"{number:05d}"

    def save_weights(self, number: int, tensors: Tensors) -> None:
        """Save the weights of a generation whose bundle is already in place."""
        checksum_path(self.bundle_path(number)).unlink(missing_ok=True)
        check(self.bundle_path(number))
        buffer = io.BytesIO()
        torch.save({name: torch.from_numpy(np.asarray(value)) for name, value in tensors.items()}, buffer)
        write_checked(self._weights(number), buffer.getvalue())

    def load(self, number: int) -> tuple[Bundle, Tensors]:
        """A generation's bundle and weights. Raises FormatError if either is damaged."""
        left = f" of generation {number} (its bundle and its weights): devices then get the newest one that is left"
        for path in (self.bundle_path(number), self._weights(number)):
            if not check(path, fix=left):
                raise FormatError(f"{path}: is missing; put back a copy")
        return open_bundle(self.bundle_path(number)), self.load_weights(number)

    def load_weights(self, number: int) -> Tensors:
        """The weights of a generation. Raises FormatError."""
        try:
            state = torch.load(self._weights(number), map_location="cpu", weights_only=True)
            return {name: tensor.numpy() for name, tensor in state.items()}
        except Exception as exc:
            raise FormatError(f"{self._weights(number)}: cannot be read ({type(exc).__name__})") from None

    def generations(self, newest: int, also: Collection[int] = ()) -> list[tuple[Bundle, Tensors]]:
        """The last `newest` generations that are complete on disk, and those in `also`, oldest first.

        A damaged one that is not in `also` is left out with a warning, unless there is no other. Raises FormatError.
        """
        complete = [number for number in self._numbers() if _is_or_was(self._weights(number))]
        wanted = [number for number in complete if number in also or number in complete[-newest:]]
        found, errors = [], []
        for number in wanted:
            try:
                found.append(self.load(number))
            except FormatError as exc:
                if number in also:
                    raise
                errors.append(exc)
        if errors and not found:
            raise errors[-1]
        for error in errors:
            _LOG.warning("%s; it is left out, because no device should run it", error)
        return found

    def prune(self, newest: int, also: Collection[int] = ()) -> list[int]:
        """Remove all generations except the last `newest` and those in `also`; returns the removed ones."""
        numbers = self._numbers()
        gone = [number for number in numbers[:-newest] if number not in also]
        for number in gone:
            # Weights first: a generation without weights no longer counts, whatever else is left of it.
            remove_checked(self._weights(number))
            checksum_path(self.bundle_path(number)).unlink(missing_ok=True)
            shutil.rmtree(self.bundle_path(number), ignore_errors=True)
        return gone

    def ledger(self, partitions: Iterable[int] = range(subjects.PARTITIONS)) -> PartitionedLedger:
        """The windows counted so far. Raises FormatError, or UsageError if another process has a partition."""
        return PartitionedLedger(self.root / "ledger", partitions)

    def _numbers(self) -> list[int]:
        names = {path.name.removesuffix(".sha256") for path in (self.root / "generations").iterdir()}
        return sorted(int(name) for name in names if name.isdecimal())

    def _weights(self, number: int) -> Path:
        return self.root / "weights" / f"{number:05d}.pt"


def bundle_paths(root: Path) -> dict[int, Path]:
    """The paths of the bundles in a state directory, by generation, oldest first; {} if no server has run."""
    found = {int(path.name): path for path in (root / "generations").glob("*") if path.name.isdecimal()}
    return dict(sorted(found.items()))


def head_clips_path(root: Path) -> Path:
    """Where the clips of pushed heads are kept in a state directory."""
    return root / "heads"


def signing_key_file(root: Path) -> Path | None:
    """The path of a server's signing key: in its state directory, or the path given by `--key`.

    None if no server has run. Raises FormatError.
    """
    own = root / "signing.key"
    elsewhere = read_checked(root / _KEY_ELSEWHERE, _MAX_PATH_BYTES, fix=": the server writes it anew when it starts")
    if elsewhere is not None:
        return Path(os.fsdecode(elsewhere.removesuffix(b"\n")))
    return own if own.exists() else None


def _is_or_was(path: Path) -> bool:
    return path.exists() or checksum_path(path).exists()
