"""The page over HTTP: static files, `/api/v1`, and a stream of changes. Runs on an event loop of its own.

Nothing may be injected into the page from elsewhere: it has a strict Content-Security-Policy, accepts no foreign host
names, and requires a token if other machines can reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime_edge.base.aio import cancel_all
from runtime_edge.base.prometheus import CONTENT_TYPE
from runtime_edge.errors import SscError
from runtime_server.web.page_answers import answered, json_answer, problem, read_json
from runtime_server.web.page_data import METRICS
from runtime_server.web.sound_routes import SoundSource, sound_routes

STATIC = Path(__file__).parent / "static"
VIEWS = ("server", "devices", "events", "corrections", "history", "training", "releases", "heads")
MAX_LISTENERS = 16
LOOK_S = 0.25
"""Time between two checks for changes while somebody listens."""
ANSWER_S = 5.0
"""How soon the server's own event loop must answer."""
COOKIE = "ssc_token"
_QUIET_S = 15.0
"""A stream sends a sign of life if there was nothing else to send for this long."""
_MAX_WAITING = 40
"""Messages that may wait for one listener; one that is slower is disconnected and starts over."""
_READING = ("GET", "HEAD", "OPTIONS")
_CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Source(SoundSource, Protocol):
    """The data shown, requested from the page's event loop."""

    async def get(self, view: str) -> bytes:
        """A view as JSON, or `metrics` in Prometheus's format. Raises SscError."""

    async def place(self) -> tuple[int, int]:
        """The position up to which the current views include everything."""

    async def changes(self, revision: int, number: int) -> tuple[bytes, int, int]:
        """What has changed since a position, and the current position."""


class Listeners:
    """The listeners of the stream of changes: one check serves all of them; without listeners there is none."""

    def __init__(self, source: Source, look_s: float = LOOK_S) -> None:
        self._source, self._look_s = source, look_s
        self._queues: set[asyncio.Queue[bytes | None]] = set()
        self._looking: asyncio.Task[None] | None = None

    @property
    def full(self) -> bool:
        """Whether there is no room for another listener."""
        return len(self._queues) >= MAX_LISTENERS

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events for one listener."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(_MAX_WAITING)
        self._queues.add(queue)
        try:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look_forever())
            yield b"retry: 2000\nevent: hello\ndata: {}\n\n"
            while True:
                try:
                    body = await asyncio.wait_for(queue.get(), _QUIET_S)
                except asyncio.TimeoutError:
                    body = b": quiet\n\n"
                if body is None:
                    return
                yield body
        finally:
            self._queues.discard(queue)

    async def hang_up(self) -> None:
        """End every stream."""
        await cancel_all([self._looking] if self._looking else [])
        for queue in self._queues:
            _end(queue)

    async def _look_forever(self) -> None:
        """Check while there are listeners; they get what came before the first check from the views."""
        place: tuple[int, int] | None = None
        while self._queues:
            with contextlib.suppress(SscError, asyncio.TimeoutError):
                if place is None:
                    place = await self._source.place()
                else:
                    body, revision, number = await self._source.changes(*place)
                    place = revision, number
                    self._tell(body)
            await asyncio.sleep(self._look_s)

    def _tell(self, body: bytes) -> None:
        if not body:
            return
        told = b"event: changes\ndata: " + body + b"\n\n"
        for queue in list(self._queues):
            if queue.full():
                self._queues.discard(queue)
                _end(queue)
            else:
                queue.put_nowait(told)


def _end(queue: asyncio.Queue[bytes | None]) -> None:
    with contextlib.suppress(asyncio.QueueEmpty):
        while True:
            queue.get_nowait()
    queue.put_nowait(None)


def make_app(source: Source, listeners: Listeners, token: str | None, hosts: frozenset[str] | None) -> ASGIApp:
    """The application.

    Args:
        source: provides the data.
        listeners: those who are told of changes.
        token: required from every client; None: everybody who can reach the page may see it.
        hosts: host names under which the page may be requested; None: any.
    """

    async def index(_: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def view(request: Request) -> Response:
        if (name := request.path_params["view"]) not in VIEWS:
            return problem(404, f"no such view; there are {', '.join(VIEWS)} and stream")

        async def work() -> Response:
            return json_answer(await source.get(name))

        return await answered(work(), 503)

    async def metrics(_: Request) -> Response:
        async def work() -> Response:
            return Response(await source.get(METRICS), media_type=CONTENT_TYPE)

        return await answered(work(), 503)

    async def stream(_: Request) -> Response:
        if listeners.full:
            return problem(503, f"{MAX_LISTENERS} pages are open already; close one")
        return StreamingResponse(listeners.stream(), media_type="text/event-stream")

    routes = [
        Route("/", index),
        Route("/metrics", metrics),
        Route("/api/v1/stream", stream),
        *sound_routes(source),
        Route("/api/v1/{view}", view),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    return _Guard(Starlette(routes=routes), token, hosts)


class _Guard:
    """Admits only permitted requests, and adds headers to every answer that keep foreign content out."""

    def __init__(self, app: ASGIApp, token: str | None, hosts: frozenset[str] | None) -> None:
        self._app, self._token, self._hosts = app, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(raw=message["headers"]).update(_HEADERS)
            await send(message)

        answer = await self._answer(request)
        await (answer or self._app)(scope, receive, send_guarded)

    async def _answer(self, request: Request) -> Response | None:
        """The answer instead of the requested one, if the request is not permitted."""
        if self._hosts is not None and _host(request.headers) not in self._hosts:
            return problem(421, "call this page by the name of this machine itself, such as http://127.0.0.1")
        if request.method not in _READING and _is_foreign(request.headers):
            return problem(403, "only the page itself may change something")
        if self._token is None:
            return None
        path = request.scope["path"]  # the path used for routing; that of `request.url` depends on the Host header
        if path == "/api/v1/login" and request.method == "POST":
            return await self._login(request)
        if (path.startswith("/api/") or path == "/metrics") and not self._knows(_given(request)):
            return problem(401, "give the token of the server's state directory (web.token)")
        return None

    async def _login(self, request: Request) -> Response:
        """Answer with a cookie if the client knows the token."""
        said = await read_json(request)
        if isinstance(said, Response):
            return said
        if not self._knows(said.get("token") if isinstance(said, dict) else None):
            return problem(401, "that is not the token")
        answer = Response(status_code=204)
        answer.set_cookie(COOKIE, str(self._token), max_age=365 * 86_400, httponly=True, samesite="strict")
        return answer

    def _knows(self, given: object) -> bool:
        if not isinstance(given, str):
            return False
        return secrets.compare_digest(given.encode("utf-8", "surrogatepass"), (self._token or "").encode())


def _given(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else request.cookies.get(COOKIE)


def _is_foreign(headers: Headers) -> bool:
    """Whether the browser says that another site caused a request. Other programs send no such header."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    return site not in (None, "same-origin") or (origin is not None and urlsplit(origin).netloc != headers.get("host"))


def _host(headers: Headers) -> str:
    """The host without the port."""
    host = headers.get("host", "")
    return host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
