"""The other ranks: they keep the same generations as the first one, and report their state to it.

    await Follower(hub, 1, generations, state, status).start()      # at every rank but the first
    followers = Followers(hub, world)                               # at the first
    await followers.keep([1, 2, 3])                                 # before a device hears of generation 3

Requests go to `srv.rank.<r>`. Only a generation's number is sent; its bundle and weights are in the state directory
that all ranks share.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec
import nats.errors
from nats.aio.msg import Msg

from runtime_edge.base.broker_errors import BROKER_ERRORS, reason
from runtime_edge.errors import LinkError, SscError
from runtime_edge.formats.strict import decode
from runtime_server.broker.hub import MAX_MESSAGE_BYTES, Hub
from runtime_server.state.server_state import ServerState
from runtime_server.suffix.generations import Generations

_LOG = logging.getLogger(__name__)
KEEP_S = 60.0
"""Time for a rank that is starting to come up, or for a running one to load a large encoder."""
_STATUS_S = 1.5
_AGAIN_S = 0.3

GetStatus = Callable[[], Coroutine[Any, Any, dict[str, Any]]]
_Answer = TypeVar("_Answer", bound=msgspec.Struct)


class RankRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request from the first rank to another."""

    keep: list[int] | None = None
    """Generations to complete from now on; without them, the rank is asked for its status."""

    @classmethod
    def from_json(cls, data: bytes) -> RankRequest:
        """Raises FormatError if the data is not a request."""
        return decode(data, cls, "request", MAX_MESSAGE_BYTES)


class RankStatus(msgspec.Struct, frozen=True):
    """A rank's status, as far as the first rank needs it."""

    windows: dict[str, int]
    counters: dict[str, int]
    ledger: dict[str, int]
    out_of_range: dict[str, int]
    uptime_s: float
    training_steps: int
    troubles: list[str] = []


class RankOutcome(msgspec.Struct, frozen=True):
    """The outcome of a request."""

    error: str | None = None


def read_answer(data: bytes, kind: type[_Answer], rank: int) -> _Answer:
    """Decode a rank's answer. Raises LinkError."""
    return decode(data, kind, f"answer of rank {rank}", MAX_MESSAGE_BYTES, LinkError)


def _subject(rank: int) -> str:
    return f"srv.rank.{rank}"


class Follower:
    """Answers the first rank's requests to this rank; `status` returns this rank's status."""

    def __init__(self, hub: Hub, rank: int, generations: Generations, state: ServerState, status: GetStatus) -> None:
        self._hub, self._rank, self._status = hub, rank, status
        self._generations, self._state = generations, state

    async def start(self) -> None:
        """Answer from now on."""
        await self._hub.subscribe(_subject(self._rank), self._on_request)

    async def _on_request(self, message: Msg) -> None:
        answer: dict[str, Any]
        try:
            request = RankRequest.from_json(message.data)
            if request.keep is not None:
                await asyncio.to_thread(follow, self._generations, self._state, request.keep)
            answer = await self._status()
        except (SscError, OSError) as exc:
            _LOG.error("%s", exc)
            answer = {"error": str(exc)}
        await message.respond(msgspec.json.encode(answer))


class Followers:
    """The requests of the first of `world` ranks to the others; with one rank there are no others.

    A rank has `keep_s` seconds to answer and to load the generations that it must keep.
    """

    def __init__(self, hub: Hub, world: int = 1, keep_s: float = KEEP_S) -> None:
        self._hub, self._others, self._keep_s = hub, range(1, world), keep_s

    async def keep(self, numbers: list[int]) -> None:
        """Wait until every rank completes frames of these generations. Raises LinkError if one does not."""
        request = msgspec.json.encode(RankRequest(numbers))
        answers = await asyncio.gather(*(self._ask(rank, request, self._keep_s, RankOutcome) for rank in self._others))
        for rank, answer in zip(self._others, answers, strict=True):
            if answer.error is not None:
                raise LinkError(f"rank {rank} cannot complete generations {numbers}: {answer.error}")

    async def statuses(self) -> dict[int, RankStatus]:
        """The status of every other rank; a rank that does not answer is left out."""
        request = msgspec.json.encode(RankRequest())
        asked = [self._ask(rank, request, _STATUS_S, RankStatus) for rank in self._others]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        found = {}
        for rank, answer in zip(self._others, answers, strict=True):
            if isinstance(answer, RankStatus):
                found[rank] = answer
            elif not isinstance(answer, LinkError):
                raise answer
        return found

    async def _ask(self, rank: int, request: bytes, patience_s: float, kind: type[_Answer]) -> _Answer:
        deadline = time.monotonic() + patience_s
        while True:
            left_s = deadline - time.monotonic()
            try:
                answer = await self._hub.client.request(_subject(rank), request, timeout=max(left_s, _AGAIN_S))
                return read_answer(answer.data, kind, rank)
            except nats.errors.NoRespondersError:
                if left_s <= 0:
                    raise LinkError(f"rank {rank} is not running") from None
            except BROKER_ERRORS as exc:
                raise LinkError(f"rank {rank} does not answer ({reason(exc)})") from None
            await asyncio.sleep(_AGAIN_S)


def follow(generations: Generations, state: ServerState, numbers: list[int]) -> None:
    """Keep exactly these generations, and the last few, for completing frames. Raises FormatError or BundleError."""
    for number in sorted(numbers):
        if generations.get(number) is None:
            generations.add(*state.load(number))
    generations.protect(numbers)


def together(own: dict[str, Any], others: dict[int, RankStatus], world: int) -> dict[str, Any]:
    """The status of all ranks as one: windows and counters added up, everything else from the first rank.

    `ranks` has each rank's own figures, with `missing` if it gave no answer.
    """
    if world == 1:
        return own
    by_rank = {0: msgspec.convert(own, RankStatus), **others}
    totals = {name: Counter[str]() for name in ("counters", "ledger", "windows", "out_of_range")}
    for status in by_rank.values():
        for name, total in totals.items():
            total.update(getattr(status, name))
    ranks = [
        {
            "rank": rank,
            "windows": sum(by_rank[rank].windows.values()),
            "uptime_s": by_rank[rank].uptime_s,
            "training_steps": by_rank[rank].training_steps,
        }
        if rank in by_rank
        else {"rank": rank, "missing": True}
        for rank in range(world)
    ]
    return {**own, **{name: dict(total) for name, total in totals.items()}, "ranks": ranks}
