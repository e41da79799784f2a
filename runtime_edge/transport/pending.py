"""What comes back for a frame: how long a round trip takes, the broker's acknowledgement, the server's answer.

All come on one subscription below a name that is new with each connection. An awaited one is a callback: no task is
started for a frame.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from runtime_edge.errors import FrameError, LinkError
from runtime_edge.formats.strict import UNREADABLE
from runtime_edge.formats.wire import Reply, decode_replies

_LOG = logging.getLogger(__name__)
_NOBODY = "503"
"""Status with which a broker says that nobody listens to a subject, no stream either."""


OnAnswer = Callable[[Reply | None], None]
OnStored = Callable[[float | LinkError], None]
"""Gets the seconds until the broker has stored a message, or why it has not."""


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
        self._replies: dict[int, tuple[OnAnswer, asyncio.TimerHandle]] = {}
        self._stored: dict[str, tuple[OnStored, float, float]] = {}
        self._overdue: asyncio.TimerHandle | None = None
        self._probe: tuple[str, Callable[[float], None], float] | None = None
        self._sent = 0

    def expect(self, window: int, deadline_s: float, on_answer: OnAnswer) -> None:
        """Call back with the server's answer to this window, or None when it has not come in `deadline_s`."""
        timer = asyncio.get_running_loop().call_later(deadline_s, self._forget, window)
        self._replies[window] = on_answer, timer

    def acknowledgement(self, timeout_s: float, on_stored: OnStored) -> str:
        """Where the broker is to acknowledge a message; the callback hears of it once, when it has or will not.

        It will not when it refuses, does not answer in `timeout_s`, or is lost.
        """
        self._sent += 1
        token, now = f"a{self._sent}", asyncio.get_running_loop().time()
        self._stored[token] = on_stored, timeout_s, now
        # One timer for all: most are acknowledged long before.
        if self._overdue is None or now + timeout_s < self._overdue.when():
            self._fail_overdue()
        return f"{self.name}.{token}"

    def not_sent(self, acknowledge: str) -> None:
        """Forget a message that the broker cannot acknowledge."""
        self._stored.pop(acknowledge[len(self.name) + 1 :], None)

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

    def take(self, token: str, data: bytes, status: str) -> None:
        """Take what has come."""
        if token in self._stored:
            self._acknowledged(token, data, status)
        elif self._probe is not None and token == self._probe[0]:
            _, on_answer, since = self._probe
            self._probe = None
            on_answer(time.monotonic() - since)
        elif not token.startswith(("a", "p")):  # else one that came too late
            self._replied(data)

    def _acknowledged(self, token: str, data: bytes, status: str) -> None:
        try:
            said = _decoder.decode(data)
        except UNREADABLE:
            self._fail(token, "no stream takes it" if status == _NOBODY else "an answer that cannot be read")
            return
        if said.error is not None or not said.stream:
            self._fail(token, str((said.error or {}).get("description", "refused")))
            return
        on_stored, _, since = self._stored.pop(token)
        on_stored(asyncio.get_running_loop().time() - since)

    def _fail_overdue(self) -> None:
        """Give up what is not acknowledged in time, and come back when the next one may be overdue."""
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        loop = asyncio.get_running_loop()
        for token, (_, timeout_s, since) in list(self._stored.items()):
            if since + timeout_s <= loop.time():
                self._fail(token, f"no answer in {timeout_s:g} s")
        if self._stored:
            due = min(since + timeout_s for _, timeout_s, since in self._stored.values())
            self._overdue = loop.call_at(due, self._fail_overdue)

    def _fail(self, token: str, why: str) -> None:
        on_stored, _, _ = self._stored.pop(token)
        on_stored(LinkError(f"not acknowledged by the broker: {why}"))

    def _replied(self, data: bytes) -> None:
        try:
            replies = decode_replies(data)
        except FrameError as exc:
            self.bad_replies += 1
            _LOG.warning("reply dropped: %s", exc)
            return
        for reply in replies:
            if reply.window in self._replies:
                on_answer, timer = self._replies.pop(reply.window)
                timer.cancel()
                on_answer(reply)
            else:
                self._late_reply(reply)

    def _forget(self, window: int) -> None:
        on_answer, _ = self._replies.pop(window)
        on_answer(None)
