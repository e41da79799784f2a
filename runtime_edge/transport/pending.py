"""Pending answers of a connection: pings, the broker's acknowledgements and the server's replies.

All arrive on one subscription, whose name changes with each connection. A pending answer is a callback, so that no
asyncio task is needed for a frame.
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
from runtime_edge.transport.protocol import LateReply, OnAnswer, OnStored

_LOG = logging.getLogger(__name__)
_NOBODY = "503"
"""The broker's status for a subject that has neither a subscriber nor a stream."""


class _Acknowledgement(msgspec.Struct):
    """What JetStream says of a message, as far as it matters here."""

    stream: str = ""
    error: dict[str, object] | None = None


_decoder = msgspec.json.Decoder(_Acknowledgement)


class PendingAnswers:
    """The answers that a connection waits for; it survives reconnections."""

    def __init__(self) -> None:
        self.name = ""
        """Of the present connection's inbox; subjects of answers are `<name>.<token>`."""
        self.bad_replies = 0
        self.on_late_reply: LateReply = _drop
        """Gets the server's replies that come after their deadline."""
        self._replies: dict[int, tuple[OnAnswer, asyncio.TimerHandle]] = {}
        self._stored: dict[str, tuple[OnStored, float, float]] = {}
        self._overdue: asyncio.TimerHandle | None = None
        self._ping: tuple[str, Callable[[float], None], float] | None = None
        self._sent = 0

    def expect(self, window: int, deadline_s: float, on_answer: OnAnswer) -> None:
        """Call back with the server's answer to this window, or None when it has not come in `deadline_s`."""
        timer = asyncio.get_running_loop().call_later(deadline_s, self._forget, window)
        self._replies[window] = on_answer, timer

    def acknowledgement(self, timeout_s: float, on_stored: OnStored) -> str:
        """The reply subject for a message's acknowledgement. The callback is called exactly once, with success or
        failure.

        It is a failure when the broker refuses the message, does not answer within `timeout_s`, or is lost.
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
        """The reply subject for a ping; the callback gets the seconds. A newer ping replaces an older one."""
        self._sent += 1
        token = f"p{self._sent}"
        self._ping = token, on_answer, time.monotonic()
        return f"{self.name}.{token}"

    def connection_lost(self) -> None:
        """Fail all pending acknowledgements. Pending replies run into their own deadlines."""
        for token in list(self._stored):
            self._fail(token, "the connection was lost")

    def receive(self, token: str, data: bytes, status: str) -> None:
        """Pass an incoming message to whoever waits for it."""
        if token in self._stored:
            self._acknowledged(token, data, status)
        elif self._ping is not None and token == self._ping[0]:
            _, on_answer, since = self._ping
            self._ping = None
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
        """Fail acknowledgements that are overdue, and set the timer for the next one."""
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
                self.on_late_reply(reply)

    def _forget(self, window: int) -> None:
        on_answer, _ = self._replies.pop(window)
        on_answer(None)


def _drop(reply: Reply) -> None:
    _LOG.debug("nobody waits for the reply to window %d", reply.window)
