"""The service manager's end of what a device or a server tells it."""

from __future__ import annotations

import socket
import threading
from pathlib import Path


class Manager:
    """systemd's end of the notification socket."""

    def __init__(self, directory: Path, watchdog_s: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(directory / "n"))
        self.environment = {"NOTIFY_SOCKET": str(directory / "n"), "WATCHDOG_USEC": str(int(watchdog_s * 1e6))}
        self.heard: list[str] = []
        # All the time: a socket's queue holds ten datagrams, and a device waits for nobody.
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(b"", self.environment["NOTIFY_SOCKET"])
        self._listener.join()
        self._socket.close()

    def _listen(self) -> None:
        while message := self._socket.recv(4096):
            self.heard.append(message.decode())
