"""Pending answers of a connection: pings, the broker's acknowledgements and the server's replies.

All arrive on one subscription, whose name changes with each connection. A pending answer is a callback, so a frame
needs no asyncio task.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from runtime_edge.errors import FrameError, LinkError
from runtime_edge.formats import subjects
from runtime_edge.formats.strict import UNREADABLE
from runtime_edge.formats.wire import Reply, decode_replies
from runtime_edge.transport.protocol import LateReply, OnAnswer, OnStored

_LOG = logging.getLogger(__name__)
_NEWEST = 0.25
"""Weight of the newest value in a mean."""
_MOST_SERVER = 50
"""At least this fraction (1/50) of a time counts as the link's, whatever the server says about its own."""
_NOBODY = "503"
"""The broker's status for a subject that has neither a subscriber nor a stream."""


class _Acknowledgement(msgspec.Struct):
    """JetStream's acknowledgement of a message, as far as it matters here."""

    stream: str = ""
    error: dict[str, object] | None = None


class _Awaited(NamedTuple):
    """A message that is not acknowledged yet."""

    on_stored: OnStored
    timeout_s: float
    since: float
    window: int | None
    """Its first window, if that is answered."""

    @property
    def due(self) -> float:
        return self.since + self.timeout_s


_decoder = msgspec.json.Decoder(_Acknowledgement)


class PendingAnswers:
    """The answers that a connection waits for; it survives reconnections."""

    def __init__(self) -> None:
        self.name = ""
        """Name of the present connection's inbox; answers come on `<name>.<token>`."""
        self.bad_replies = 0
        self.on_late_reply: LateReply = _drop
        """Called with replies of the server that come after their deadline."""
        self.on_overdue: Callable[[], None] = lambda: None
        """Called if the broker has not acknowledged something in time."""
        self._replies: dict[int, tuple[OnAnswer, float]] = {}
        self._stored: dict[str, _Awaited] = {}
        self._stored_at: tuple[int, float] | None = None
        """The first window of the message that the broker acknowledged last, and when."""
        self._behind_s = 0.0
        """How much later than the broker's acknowledgement the server's answer comes, without the server's own time."""
        # One timer for all: most answers come long before they are due.
        self._timer: asyncio.TimerHandle | None = None
        self._ping: tuple[str, Callable[[float], None], float] | None = None
        self._sent = 0

    def expect(self, window: int, deadline_s: float, on_answer: OnAnswer) -> None:
        """Call back with the server's answer to this window, or None if it does not come within `deadline_s`."""
        due = asyncio.get_running_loop().time() + deadline_s
        self._replies[window] = on_answer, due
        self._wake_by(due)

    def acknowledgement(
        self, timeout_s: float, on_stored: OnStored, window: int | None = None, by_answer: bool = False
    ) -> str:
        """The token for a message's acknowledgement. The callback is called exactly once, with success or failure.

        It is a failure if the broker refuses the message, does not answer within `timeout_s`, or is lost. With
        `by_answer` the server's reply to `window`, the message's first, is the acknowledgement.
        """
        self._sent += 1
        token, now = _of_answer(window) if by_answer else f"a{self._sent}", asyncio.get_running_loop().time()
        self._stored[token] = _Awaited(on_stored, timeout_s, now, window)
        self._wake_by(now + timeout_s)
        return token

    def not_sent(self, token: str) -> None:
        """Forget a message that was not sent, so nobody can acknowledge it."""
        self._stored.pop(token, None)

    def round_trip(self, on_answer: Callable[[float], None]) -> str:
        """The reply subject for a ping; the callback gets the seconds. A newer ping replaces an older one."""
        self._sent += 1
        token = f"p{self._sent}"
        self._ping = token, on_answer, time.monotonic()
        return f"{self.name}.{token}"

    def connection_lost(self) -> None:
        """Fail all pending acknowledgements. Pending replies time out at their own deadlines."""
        for token in list(self._stored):
            self._fail(token, "the connection was lost")

    def receive(self, token: str, data: bytes, status: str) -> None:
        """Pass an incoming message to the callback that waits for it."""
        if token in self._stored:
            self._acknowledged(token, data, status)
        elif self._ping is not None and token == self._ping[0]:
            _, on_answer, since = self._ping
            self._ping = None
            on_answer(time.monotonic() - since)
        elif not token.startswith(("a", "p")):  # otherwise it is an answer that came too late
            self._replied(data)
        if self._timer is not None and not self._stored and not self._replies:
            self._timer.cancel()  # otherwise it would wake a device that has nothing to do
            self._timer = None

    def _acknowledged(self, token: str, data: bytes, status: str) -> None:
        try:
            said = _decoder.decode(data)
        except UNREADABLE:
            self._fail(token, "no stream takes it" if status == _NOBODY else "an answer that cannot be read")
            return
        if said.error is not None or said.stream != subjects.STREAM:
            self._fail(token, str((said.error or {}).get("description", f"stored by {said.stream or 'no stream'}")))
            return
        message, now = self._stored.pop(token), asyncio.get_running_loop().time()
        self._stored_at = None if message.window is None else (message.window, now)
        message.on_stored(now - message.since)

    def _is_stored(self, reply: Reply) -> None:
        """Take a reply as proof that the broker had stored the frame. The time counted is without the server's own,
        and without what the answer usually takes longer than the broker's acknowledgement.
        """
        now, server_s = asyncio.get_running_loop().time(), reply.server_us / 1e6
        if self._stored_at is not None and self._stored_at[0] == reply.window:
            behind_s = max(now - self._stored_at[1] - server_s, 0.0)
            self._behind_s += (behind_s - self._behind_s) * (_NEWEST if self._behind_s else 1.0)
            self._stored_at = None
        message = self._stored.pop(_of_answer(reply.window), None)
        if message is not None:
            passed_s = now - message.since
            message.on_stored(max(passed_s - server_s - self._behind_s, passed_s / _MOST_SERVER))

    def _wake_by(self, due: float) -> None:
        """Make sure that overdue answers are looked for at `due` (the loop's time) or before."""
        if self._timer is None or due < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_at(due, self._give_up_overdue)

    def _give_up_overdue(self) -> None:
        """Give up overdue answers, and set the timer for the next one due."""
        loop = asyncio.get_running_loop()
        now, self._timer = loop.time(), None
        # The loop calls each separately, so an exception in one does not affect the others.
        for token in [token for token, message in self._stored.items() if message.due <= now]:
            message = self._stored.pop(token)
            loop.call_soon(self.on_overdue)
            loop.call_soon(message.on_stored, _failure(f"no answer in {message.timeout_s:g} s"))
        for window in [window for window, (_, due) in self._replies.items() if due <= now]:
            loop.call_soon(self._replies.pop(window)[0], None)
        dues = [message.due for message in self._stored.values()]
        dues += [due for _, due in self._replies.values()]
        if dues:
            self._wake_by(min(dues))

    def _fail(self, token: str, why: str) -> None:
        self._stored.pop(token).on_stored(_failure(why))

    def _replied(self, data: bytes) -> None:
        try:
            replies = decode_replies(data)
        except FrameError as exc:
            self.bad_replies += 1
            _LOG.warning("reply dropped: %s", exc)
            return
        for reply in replies:
            self._is_stored(reply)
        for reply in replies:
            if reply.window in self._replies:
                self._replies.pop(reply.window)[0](reply)
            else:
                self.on_late_reply(reply)


def _of_answer(window: int | None) -> str:
    """The token that stands for an acknowledgement by the server's answer."""
    return f"w{window}"


def _failure(why: str) -> LinkError:
    return LinkError(f"not acknowledged by the broker: {why}")


def _drop(reply: Reply) -> None:
    _LOG.debug("nobody waits for the reply to window %d", reply.window)
