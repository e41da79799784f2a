"""Who may do what on the broker: only the server, its devices and readers of their events have any rights.

    access = Access(Path("server"))
    seed = access.add("pi-1")             # for the device alone; only its public half is kept here
    access.write()                        # what the embedded broker includes; `reload` makes running ones read it again

A device may publish its own frames, events, presence and learnt values, receive replies below its own inbox, and read
what is meant for every device or for it alone. It has an account of its own (`accounts`), and none of its rights names
a consumer. So it can neither read frames nor make the broker deliver anything on a subject it has no right to.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from runtime_edge.base.checked_files import check, read_checked, write_checked
from runtime_edge.base.files import locked, make_private, write_atomic
from runtime_edge.errors import LinkError, UsageError
from runtime_edge.formats import strict, subjects
from runtime_edge.formats.credentials import Credentials, new_seed, public_key, read_seed
from runtime_server.broker.accounts import accounts_config

INCLUDED = "accounts.conf"
"""The file that the embedded broker's configuration includes. The `access.conf` of earlier versions had no accounts."""

_MAX_BYTES = 64 << 20
_LOCK_PATIENCE_S = 30.0
_RELOAD_S = 30.0
_RELOADED, _NOT_RELOADED = "Reloaded server configuration", "Failed to reload server configuration"
"""The lines that nats-server writes to its log."""
Policy = Literal["devices", "always", "never"]
"""When to ask for credentials: once a device has been added, always, or never."""


@dataclass(frozen=True)
class SecurityConfig:
    """Who is admitted, and what is encrypted; see `ssc server run --help`."""

    auth: bool | None = None
    credentials: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device, or a reader of events. Revoked ones keep their record."""

    name: str
    added: str
    public: str = ""
    """A device's nkey; empty for a reader."""
    password: str = ""
    """A reader's password, because MQTT clients do not support nkeys; empty for a device."""
    revoked: str = ""

    @property
    def kind(self) -> str:
        """`device` or `reader`."""
        return "device" if self.public else "reader"


class _AccessState(msgspec.Struct, forbid_unknown_fields=True):
    policy: Policy = "devices"
    members: dict[str, Member] = {}


class Access:
    """The register of devices in a server's state directory: `devices.json`, and beside it the server's own key."""

    def __init__(self, root: Path) -> None:
        self._file, self._key = root / "devices.json", root / "server.nkey"
        self._root = root

    @property
    def credentials(self) -> Credentials:
        """The server's own credentials, made on first use. Raises FormatError when the file is damaged."""
        if not check(self._key, fix=": a new one is made, and given to brokers that run elsewhere by hand"):
            write_checked(self._key, f"{new_seed()}\n".encode(), 0o600)
        return Credentials(nkey=self._key)

    @property
    def required(self) -> bool:
        """Whether only registered devices and readers are admitted."""
        return _required(self._read())

    def members(self) -> list[Member]:
        """Everyone who was ever added, sorted by name. Raises FormatError."""
        return [member for _, member in sorted(self._read().members.items())]

    def set_policy(self, auth: bool | None, host: str) -> None:
        """Set whether to require credentials [default: when other machines can reach the broker]."""
        policy: Policy = "devices" if is_loopback(host) else "always"
        if auth is not None:
            policy = "always" if auth else "never"
        with self._changing() as state:
            state.policy = policy

    def add(self, name: str) -> str:
        """Admit a device; returns its seed, which is not kept. Raises UsageError if the name is in use."""
        seed = new_seed()
        self._add(Member(subjects.check_device(name), _now(), public=public_key(seed)))
        return seed

    def add_reader(self, name: str) -> str:
        """Let an MQTT client read all events; returns its password. Raises UsageError if the name is in use."""
        password = secrets.token_urlsafe(24)
        self._add(Member(subjects.check_device(name), _now(), password=password))
        return password

    def revoke(self, name: str) -> None:
        """Revoke a device or reader. Raises UsageError if nobody of that name is admitted."""
        with self._changing() as state:
            member = state.members.get(name)
            if member is None or member.revoked:
                raise UsageError(f"{name}: no such device was added; `ssc server device list` shows all")
            state.members[name] = msgspec.structs.replace(member, revoked=_now(), password="")

    def config(self, anyone: bool = True) -> str:
        """The broker's configuration for these rules; without `anyone`, as if credentials were required."""
        state = self._read()
        present = [member for member in state.members.values() if not member.revoked]
        return accounts_config(
            public_key(read_seed(_existing(self.credentials.nkey))),
            {member.name: member.public for member in present if member.kind == "device"},
            {member.name: member.password for member in present if member.kind == "reader"},
            anyone and not _required(state),
        )

    @property
    def secret(self) -> str:
        """The password by which the brokers of a cluster prove that they have this register with the server's key."""
        seed = read_seed(_existing(self.credentials.nkey))
        return hashlib.sha256(f"streamsplit cluster {seed}".encode()).hexdigest()

    def write(self) -> None:
        """Write the configuration into the directories from which this state directory's brokers include it."""
        for broker in self._brokers():
            write_atomic(broker / INCLUDED, self.config().encode(), 0o600)

    def reload(self) -> bool:
        """Write the configuration and make running brokers read it; False if none runs here. Raises LinkError."""
        self.write()
        told = [_told(broker) for broker in self._brokers()]
        return any(told)

    def _brokers(self) -> list[Path]:
        """The directories of the embedded broker, or of the brokers of a cluster."""
        return [path for path in self._root.glob("broker*") if path.is_dir()] or [self._root / "broker"]

    def _add(self, member: Member) -> None:
        with self._changing() as state:
            present = state.members.get(member.name)
            if present is not None and not present.revoked:
                raise UsageError(f"{member.name}: was added already; `ssc server device revoke {member.name}` first")
            state.members[member.name] = member

    @contextlib.contextmanager
    def _changing(self) -> Iterator[_AccessState]:
        """The register, to be changed; one change at a time, also across processes."""
        make_private(self._file.parent)
        lock = self._file.parent / ".devices.lock"
        with locked(lock, "another command is changing the devices; try again", _LOCK_PATIENCE_S):
            state = self._read()
            yield state
            write_checked(self._file, msgspec.json.format(msgspec.json.encode(state), indent=1), 0o600)

    def _read(self) -> _AccessState:
        again = " and add the devices again"
        data = read_checked(self._file, _MAX_BYTES, fix=again)
        if data is None:
            return _AccessState()
        return strict.decode(
            data, _AccessState, str(self._file), _MAX_BYTES, fix=f"; put back a copy, or remove it{again}"
        )


def _told(broker: Path) -> bool:
    """Make a broker read its configuration again; returns whether one runs here. Raises LinkError.

    The broker reads it twice: nats-server (2.15) only carries requests out of an account after reading of it twice.
    """
    return _reread(broker) and _reread(broker)


def _reread(broker: Path) -> bool:
    log = broker / "broker.log"
    try:
        process = psutil.Process(int((broker / "broker.pid").read_text()))
        if not process.name().startswith("nats-server"):
            return False
        if INCLUDED.encode() not in (broker / "broker.conf").read_bytes():
            raise LinkError("the running broker is an earlier version's: restart the server to apply this")
        before = log.stat().st_size
        os.kill(process.pid, signal.SIGHUP)
    except PermissionError:
        raise LinkError(f"the broker (process {process.pid}) belongs to another user: run this as that user") from None
    except (OSError, ValueError, psutil.Error):
        return False
    deadline = time.monotonic() + _RELOAD_S
    while time.monotonic() < deadline and process.is_running():
        said = _written_since(log, before)
        if _RELOADED in said:
            return True
        if _NOT_RELOADED in said:
            words = said.partition(_NOT_RELOADED)[2].splitlines()[0]
            raise LinkError(f"the broker keeps its previous configuration{words} (see {log})")
        time.sleep(0.01)
    raise LinkError(f"the broker (process {process.pid}) has not read its configuration in {_RELOAD_S:g} s (see {log})")


def _written_since(log: Path, start: int) -> str:
    """What was written to a log after its first `start` bytes, even if it has been rotated since."""
    former = max(log.parent.glob(f"{log.name}.*"), default=None)
    begun_anew = former is not None and log.stat().st_size < start
    parts = [(former, start), (log, 0)] if former is not None and begun_anew else [(log, start)]
    return "".join(_read_from(path, place) for path, place in parts)


def _read_from(path: Path, place: int) -> str:
    with path.open("rb") as file:
        file.seek(place)
        return file.read(_MAX_BYTES).decode(errors="replace")


def _required(state: _AccessState) -> bool:
    return state.policy == "always" or (state.policy == "devices" and bool(state.members))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _existing(path: Path | None) -> Path:
    assert path is not None
    return path
