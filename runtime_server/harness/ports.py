"""Ports for processes that are started on this machine."""

from __future__ import annotations

import contextlib
import socket


def free_ports(count: int) -> list[int]:
    """Different TCP ports of 127.0.0.1 that are currently free."""
    with contextlib.ExitStack() as listeners:
        found = [listeners.enter_context(socket.socket()) for _ in range(count)]
        for listener in found:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in found]


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is currently free."""
    return free_ports(1)[0]
