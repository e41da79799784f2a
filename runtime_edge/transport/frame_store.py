"""Frames between the encoder and the broker: kept on disk, and counted exactly once.

Called in the worker's thread (`runtime_edge.base.worker.Worker`), except `settle_soon`, so that the counts and the
disk always agree. A frame that the disk refused may still be on its way; only if sending fails as well is it dropped,
and counted under the reason why the disk refused it.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from runtime_edge.errors import SpoolError
from runtime_edge.transport.accounting import Accounting, DropReason
from runtime_edge.transport.spool.spool import Spool, SpooledFrame, SpoolState

_LOG = logging.getLogger(__name__)


class FrameStore:
    """Adds frames to the spool, removes them once the broker has them, and keeps the accounting in step.

    Args:
        spool: where frames are kept; those left by earlier runs are sent as well.
        own: the beginning of this run's message ids.
        accounting: counts the fate of this run's windows, and of inherited frames.

    Raises:
        SpoolError: the disk fails.
    """

    def __init__(self, spool: Spool, own: str, accounting: Accounting) -> None:
        self.spool = spool
        self.own, self._accounting = own, accounting
        self._claimed: set[str] = set()
        self._unspooled: dict[str, DropReason] = {}
        self._finished: deque[tuple[str, bool]] = deque()
        self._losses = spool.losses
        accounting.inherited = spool.depth()
        accounting.inherited_dropped += spool.damaged

    def put(self, message_id: str, window: int, frame: bytes, uncertainty: float, claim: bool) -> None:
        """Store a frame of this run; with `claim` the caller sends it now and the replay leaves it alone."""
        self._settle_due(with_next_put=True)
        self._accounting.captured += 1
        if claim:
            self._claimed.add(message_id)
        try:
            for dropped in self.spool.put(message_id, window, frame, uncertainty):
                self._not_spooled(dropped, "spool_full")
        except SpoolError as exc:
            self._accounting.errors["SpoolError"] += 1
            _LOG.warning("%s", exc)
            self._not_spooled(message_id, "spool_refused")
        self._account_damage()

    def keep_local(self) -> None:
        """Count a window of this run that is not shipped."""
        self._accounting.captured += 1
        self._accounting.kept_local += 1

    def claim_oldest(self) -> SpooledFrame | None:
        """Claim the oldest frame that is not being sent. Raises SpoolError."""
        self._settle_due()
        stored = self.spool.oldest(1 + len(self._claimed))
        self._account_damage()
        found = next((frame for frame in stored if frame.message_id not in self._claimed), None)
        if found is not None:
            self._claimed.add(found.message_id)
        return found

    def settle_soon(self, message_id: str, delivered: bool) -> None:
        """Record the outcome of sending a claimed frame; the next call of another method applies it.

        Safe from any thread.
        """
        self._finished.append((message_id, delivered))

    def settle(self, message_id: str, delivered: bool, with_next_put: bool = False) -> None:
        """End the attempt to send a claimed frame, and record its outcome."""
        self._settle(message_id, delivered, with_next_put)
        self._account_damage()

    def _settle(self, message_id: str, delivered: bool, with_next_put: bool) -> None:
        self._claimed.discard(message_id)
        reason = self._unspooled.pop(message_id, None)
        if delivered:
            self.spool.ack([message_id], with_next_put)
        if self.is_own(message_id):
            self._accounting.acked += delivered
            self._accounting.undecided -= reason is not None
        elif reason is None:
            self._accounting.inherited -= delivered
        if reason is not None and not delivered:
            self._drop(message_id, reason)

    def give_up(self) -> None:
        """Settle all claimed frames after sending has ended."""
        self._settle_due()
        for message_id in list(self._claimed):
            self.settle(message_id, delivered=False)

    def is_own(self, message_id: str) -> bool:
        """Whether a frame belongs to this run."""
        return message_id.startswith(self.own)

    def report(self) -> dict[str, Any]:
        """The accounting and what is spooled, at one moment. Raises SpoolError."""
        return self._accounting.report(self.depth())

    def depth(self) -> int:
        """The number of spooled frames. Raises SpoolError."""
        self._settle_due()
        return self.spool.depth()

    def state(self) -> SpoolState:
        """What is spooled. Raises SpoolError."""
        self._settle_due()
        return self.spool.state()

    def close(self) -> None:
        """Release the spool's file."""
        self._settle_due()
        self.spool.close()

    def _settle_due(self, with_next_put: bool = False) -> None:
        while self._finished:
            self._settle(*self._finished.popleft(), with_next_put)
        if not with_next_put:
            self.spool.ack([])  # acknowledgements that waited for a put
            self._account_damage()

    def _not_spooled(self, message_id: str, reason: DropReason) -> None:
        """Account for a frame that is not, or no longer, on the disk."""
        own = self.is_own(message_id)
        self._accounting.inherited -= not own
        if message_id in self._claimed:
            self._unspooled[message_id] = reason
            self._accounting.undecided += own
        else:
            self._drop(message_id, reason)

    def _drop(self, message_id: str, reason: DropReason) -> None:
        if self.is_own(message_id):
            self._accounting.dropped[reason] += 1
        else:
            self._accounting.inherited_dropped += 1

    def _account_damage(self) -> None:
        """Account for frames lost in a damaged spool: all are gone but those on their way."""
        losses = self.spool.losses
        if losses == self._losses:
            return
        try:
            gone = [name for name in self._claimed - self._unspooled.keys() if not self.spool.holds(name)]
            depth, own = self.spool.depth(), self.spool.count(self.own)
        except SpoolError as exc:
            _LOG.warning("%s", exc)
            return
        self._losses = losses
        for message_id in gone:
            self._not_spooled(message_id, "spool_damaged")
        self._accounting.inherited_dropped += max(0, self._accounting.inherited - (depth - own))
        self._accounting.inherited = depth - own
        if lost := self._accounting.lost(depth):
            self._accounting.dropped["spool_damaged"] += lost
