"""What comes back for a frame: how long a round trip takes, the broker's acknowledgement, the server's answer.

All come on one subscription below a name that is new with each connection. An awaited one is a future with a timer: no
task is started for a frame.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec
from nats.aio.msg import Msg

from runtime_edge.errors import FrameError, LinkError
from runtime_edge.wire import Reply, decode_reply

_LOG = logging.getLogger(__name__)
_NOBODY = "503"
"""Status with which a broker says that nobody listens to a subject, no stream either."""


class _Acknowledgement(msgspec.Struct):
    """What JetStream says of a message, as far as it matters here."""

    stream: str = ""
    error: dict[str, object] | None = None


_decoder = msgspec.json.Decoder(_Acknowledgement)


class Inbox:
    """Answers that are awaited on one connection after the other.

    Args:
        late_reply: gets the server's answers that nobody awaits any more.
    """

    def __init__(self, late_reply: Callable[[Reply], None]) -> None:
        self.name = ""
        """Of the present connection's inbox; subjects of answers are `<name>.<token>`."""
        self.bad_replies = 0
        self._late_reply = late_reply
        self._replies: dict[int, tuple[asyncio.Future[Reply | None], asyncio.TimerHandle]] = {}
        self._stored: dict[str, tuple[asyncio.Future[float], asyncio.TimerHandle, float]] = {}
        self._probe: tuple[str, Callable[[float], None], float] | None = None
        self._sent = 0

    def expect(self, window: int, deadline_s: float) -> asyncio.Future[Reply | None]:
        """The server's answer to this window, or None when it has not come in `deadline_s`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply | None] = loop.create_future()
        self._replies[window] = future, loop.call_later(deadline_s, self._forget, window)
        return future

    def acknowledgement(self, timeout_s: float) -> tuple[str, asyncio.Future[float]]:
        """Where the broker is to acknowledge a message, and the seconds it has taken, once it has.

        The future fails with LinkError: the broker refuses, does not answer in `timeout_s`, or is lost.
        """
        loop = asyncio.get_running_loop()
        self._sent += 1
        token, future = f"a{self._sent}", loop.create_future()
        timer = loop.call_later(timeout_s, self._fail, token, f"no answer in {timeout_s:g} s")
        self._stored[token] = future, timer, time.monotonic()
        return f"{self.name}.{token}", future

    def round_trip(self, on_answer: Callable[[float], None]) -> str:
        """Where the broker is to answer a probe; the callback gets the seconds. Only the latest probe counts."""
        self._sent += 1
        token = f"p{self._sent}"
        self._probe = token, on_answer, time.monotonic()
        return f"{self.name}.{token}"

    def connection_lost(self) -> None:
        """No acknowledgement comes any more, nor any answer; those have deadlines of their own."""
        for token in list(self._stored):
            self._fail(token, "the connection was lost")

    async def on_message(self, message: Msg) -> None:
        """Take what has come."""
        token = message.subject[len(self.name) + 1 :]
        if token in self._stored:
            self._acknowledged(token, message)
        elif self._probe is not None and token == self._probe[0]:
            _, on_answer, since = self._probe
            self._probe = None
            on_answer(time.monotonic() - since)
        elif not token.startswith(("a", "p")):  # else one that came too late
            self._replied(message)

    def _acknowledged(self, token: str, message: Msg) -> None:
        try:
            said = _decoder.decode(message.data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            nobody = (message.headers or {}).get("Status") == _NOBODY
            self._fail(token, "no stream takes it" if nobody else "an answer that cannot be read")
            return
        if said.error is not None or not said.stream:
            self._fail(token, str((said.error or {}).get("description", "refused")))
            return
        future, timer, since = self._stored.pop(token)
        timer.cancel()
        if not future.done():
            future.set_result(time.monotonic() - since)

    def _fail(self, token: str, why: str) -> None:
        future, timer, _ = self._stored.pop(token)
        timer.cancel()
        if not future.done():
            future.set_exception(LinkError(f"not acknowledged by the broker: {why}"))

    def _replied(self, message: Msg) -> None:
        try:
            reply = decode_reply(message.data)
        except FrameError as exc:
            self.bad_replies += 1
            _LOG.warning("reply dropped: %s", exc)
            return
        future, timer = self._replies.pop(reply.window, (None, None))
        if timer is not None:
            timer.cancel()
        if future is not None and not future.done():
            future.set_result(reply)
        else:
            self._late_reply(reply)

    def _forget(self, window: int) -> None:
        future, _ = self._replies.pop(window)
        if not future.done():
            future.set_result(None)
