"""Serves the page from a thread with its own event loop, which requests the data from the server's event loop."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from runtime_edge.base.files import make_private, read_text, write_atomic
from runtime_edge.errors import MissingExtra, UsageError
from runtime_server.broker.access import is_loopback
from runtime_server.web.page_data import PageData

_EXAMPLES = "8081, or 0.0.0.0:8081 for other machines, too"
_STOP_S = 5.0
MAX_CONNECTIONS = 100
_REQUEST_S = 10
"""How soon a browser must send a complete request, the first or the next one."""
_BACKLOG = 64
_TOKEN_BYTES = 1024
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class WebAddress:
    """The address of the page."""

    host: str
    port: int
    """0 takes a free one."""

    @classmethod
    def parse(cls, text: str) -> WebAddress:
        """Parse `8081` or `host:8081`. Raises UsageError."""
        host, _, port = text.rpartition(":")
        if not port.isascii() or not port.isdigit() or int(port) > 65_535 or (":" in text and not host):
            raise UsageError(f"--web {text!r:.60}: give a port, such as {_EXAMPLES}")
        return cls(host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port))

    @property
    def is_open(self) -> bool:
        """Whether other machines can reach it."""
        return not is_loopback(self.host)


class PageServer:
    """Serves until closed. Create it on the event loop of the server that `data` describes.

    Args:
        address: where to serve.
        state: the server's state directory, for the token.
        data: what is shown.
        request_s: a connection without a complete request for this long is closed.

    Raises:
        UsageError: the address is taken, or does not belong to this machine.
        MissingExtra: the extra `web` is not installed.
    """

    def __init__(self, address: WebAddress, state: Path, data: PageData, request_s: int = _REQUEST_S) -> None:
        _require()
        self._request_s = request_s
        self.token_file = state / "web.token" if address.is_open else None
        """The file with the token that clients need; None: no token is needed."""
        self._token = None if self.token_file is None else _token(self.token_file)
        self._socket = _listening(address)
        self._data, self._loop, self._own = data, asyncio.get_running_loop(), asyncio.new_event_loop()
        host = f"[{address.host}]" if ":" in address.host else address.host
        self.url = f"http://{host}:{self._socket.getsockname()[1]}/"
        self._hosts = None if address.is_open else _LOCAL_NAMES | {host}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="page", daemon=True)
        self._thread.start()

    async def get(self, view: str) -> bytes:
        """See `Source.get`; called on the page's event loop."""
        return await self._ask(self._data.get(view))

    async def place(self) -> tuple[int, int]:
        """See `Source.place`; called on the page's event loop."""

        async def place() -> tuple[int, int]:
            return self._data.place

        return await self._ask(place())

    async def changes(self, revision: int, number: int) -> tuple[bytes, int, int]:
        """See `Source.changes`; called on the page's event loop."""
        return await self._ask(self._data.changes(revision, number))

    async def picture(self, number: int) -> bytes:
        """See `SoundSource.picture`; called on the page's event loop."""
        return await self._ask(self._data.picture(number))

    async def audio(self, number: int) -> bytes:
        """See `SoundSource.audio`; called on the page's event loop."""
        return await self._ask(self._data.audio(number))

    async def correct(self, number: int, label: str | None) -> bytes:
        """See `SoundSource.correct`; called on the page's event loop."""
        return await self._ask(self._data.correct(number, label))

    async def forget(self, device: str, heard: str, since: float) -> bytes:
        """See `SoundSource.forget`; called on the page's event loop."""
        return await self._ask(self._data.forget(device, heard, since))

    async def close(self) -> None:
        """End every connection and stop."""
        self._stop.set()
        await asyncio.to_thread(self._thread.join, _STOP_S)

    async def _ask(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        from runtime_server.web.page_app import ANSWER_S

        asked = asyncio.run_coroutine_threadsafe(work, self._loop)
        return await asyncio.wait_for(asyncio.wrap_future(asked), ANSWER_S)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._own)
        self._own.run_until_complete(self._serving())
        self._own.close()

    async def _serving(self) -> None:
        import uvicorn

        from runtime_server.web.page_app import Listeners, make_app
        from runtime_server.web.page_connection import PageConnection

        listeners = Listeners(self)
        app = make_app(self, listeners, self._token, self._hosts)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                http=PageConnection,
                loop="asyncio",
                limit_concurrency=MAX_CONNECTIONS + 1,
                timeout_keep_alive=self._request_s,
                timeout_graceful_shutdown=1,
                server_header=False,
                proxy_headers=False,
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[self._socket]))
        while not self._stop.is_set() and not serving.done():
            await asyncio.sleep(0.1)
        await listeners.hang_up()
        server.should_exit = True
        await serving


def _require() -> None:
    try:
        import starlette
        import uvicorn
    except ImportError as exc:
        raise MissingExtra(str(exc.name), "web") from None
    _ = starlette, uvicorn


def _listening(address: WebAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((address.host, address.port))
        found.listen(_BACKLOG)
    except OSError as exc:
        found.close()
        raise UsageError(f"--web {address.host}:{address.port}: {exc.strerror}; choose another address") from None
    return found


def _token(path: Path) -> str:
    """The token in the file, which is created if there is none; remove it to get a new token."""
    make_private(path.parent)
    if not path.exists():
        write_atomic(path, f"{secrets.token_urlsafe(24)}\n".encode(), 0o600)
    token = read_text(path, _TOKEN_BYTES).strip()
    if len(token) < 16:
        raise UsageError(f"{path}: a token has at least 16 characters; remove the file, and one is made")
    return token
