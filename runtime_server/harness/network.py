"""Two network namespaces joined by a cable whose rate can be set: the server's side and the device's.

Linux only, and only where creating namespaces is permitted (usually as root). The kernel's token bucket limits the rate
both ways; `Relay` adds delay, outages, and the time that a burst through the bucket would have taken. Names contain the
process id, so that the next run finds and removes what a killed run has left. Only these two namespaces and their
loopback are ever addressed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime_edge.errors import UsageError

SERVER_ADDRESS, DEVICE_ADDRESS = "10.213.77.1", "10.213.77.2"
DEVICE_LINK, _SERVER_LINK = "uplink", "downlink"
_PREFIX = "ssc-lab-"
_RUN = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_TIMEOUT_S = 10.0
_ALL_PROTOCOLS = 3
"""Linux's `ETH_P_ALL`."""
_MTU_BYTES = 1514
_QUEUE_BYTES = 1 << 20
"""Kernel queue, larger than what the broker's clients have in flight, so that nothing is dropped."""


@dataclass(frozen=True)
class Traffic:
    """Bytes on the device's interface since it was created, including every header from Ethernet upwards."""

    up: int
    down: int
    up_packets: int = 0
    down_packets: int = 0

    def since(self, before: Traffic) -> Traffic:
        """The traffic since an earlier reading."""
        return Traffic(
            self.up - before.up,
            self.down - before.down,
            self.up_packets - before.up_packets,
            self.down_packets - before.down_packets,
        )


class Network:
    """Created on entering, removed on leaving. Raises UsageError where that is not permitted."""

    def __init__(self) -> None:
        self.server, self.device = (f"{_PREFIX}{os.getpid()}-{side}" for side in ("server", "device"))

    def __enter__(self) -> Network:
        if reason := why_not():
            raise UsageError(reason)
        remove_stale()
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _make(self) -> None:
        _ip("netns", "add", self.server)
        _ip("netns", "add", self.device)
        _ip("link", "add", DEVICE_LINK, "netns", self.device, "type", "veth",
            "peer", "name", _SERVER_LINK, "netns", self.server)  # fmt: skip
        for name, link, address in (
            (self.server, _SERVER_LINK, SERVER_ADDRESS),
            (self.device, DEVICE_LINK, DEVICE_ADDRESS),
        ):
            # Packets of the size they have on a real cable, so that the counters see every header.
            _ip("-n", name, "link", "set", link, "gso_max_segs", "1")
            _ip("-n", name, "address", "add", f"{address}/30", "dev", link)
            _ip("-n", name, "link", "set", link, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        self.shape(None, None)

    def _remove(self) -> None:
        for name in (self.server, self.device):
            if (_RUN / name).exists():
                with contextlib.suppress(UsageError):
                    _ip("netns", "delete", name)

    def shape(self, uplink_mbps: float | None, downlink_mbps: float | None) -> None:
        """Set both rates; None means as fast as the machine. May be called at any time; queued data stays."""
        for name, link, rate in (
            (self.device, DEVICE_LINK, uplink_mbps),
            (self.server, _SERVER_LINK, downlink_mbps),
        ):
            bits = round(min(rate or 10_000.0, 10_000.0) * 1e6)
            # Enough for 2 ms, so that the kernel's timers can keep up, and at least two packets.
            burst = max(2 * _MTU_BYTES, bits // 8 // 500)
            _ip("netns", "exec", name, "tc", "qdisc", "replace", "dev", link, "root", "handle", "1:", "tbf",
                "rate", f"{bits}bit", "burst", str(burst), "limit", str(_QUEUE_BYTES))  # fmt: skip

    def traffic(self) -> Traffic:
        """The traffic that has passed the device's interface."""
        (link,) = json.loads(_ip("-n", self.device, "-s", "-j", "link", "show", "dev", DEVICE_LINK))
        sent, received = link["stats64"]["tx"], link["stats64"]["rx"]
        return Traffic(sent["bytes"], received["bytes"], sent["packets"], received["packets"])

    def run_in(self, name: str) -> list[str]:
        """The prefix of a command that makes it run in a namespace."""
        return ["ip", "netns", "exec", name]


def why_not() -> str:
    """Why namespaces cannot be created here; empty if they can."""
    if not hasattr(os, "setns") and not _RUN.parent.exists():
        return "network namespaces are Linux's; use --network relay"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not found: install iproute2, or use --network relay"
    name = f"{_PREFIX}{os.getpid()}-check"
    try:
        _ip("netns", "add", name)
    except UsageError as exc:
        return f"network namespaces are not permitted here ({exc}); run as root, or use --network relay"
    _ip("netns", "delete", name)
    return ""


def remove_stale() -> None:
    """Remove the namespaces of runs that no longer exist."""
    for path in _RUN.glob(f"{_PREFIX}*") if _RUN.exists() else ():
        owner = re.match(rf"{_PREFIX}(\d+)-", path.name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            with contextlib.suppress(UsageError):
                _ip("netns", "delete", path.name)


def socket_in(name: str) -> socket.socket:
    """A TCP socket in a network namespace, created from outside it."""
    with _inside(name):
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def packets_in(name: str, link: str) -> socket.socket:
    """A socket that receives each packet that a namespace's interface sends or receives, from Ethernet upwards."""
    with _inside(name):
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
    listener.bind((link, 0))
    return listener


def listener_in(name: str, host: str, port: int = 0) -> socket.socket:
    """A socket bound to an address of a namespace."""
    listener = socket_in(name)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


@contextlib.contextmanager
def _inside(name: str) -> Iterator[None]:
    """Move this thread into another namespace for a moment; a socket stays in the namespace where it was created."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(_RUN / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _enter(here)
    finally:
        os.close(here)


def _enter(descriptor: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*arguments: str) -> str:
    command: Sequence[str] = ["ip", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except subprocess.CalledProcessError as exc:
        raise UsageError(f"{' '.join(command)}: {exc.stderr.strip() or exc.returncode}") from None
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise UsageError(f"{' '.join(command)}: {exc}") from None
    return done.stdout
