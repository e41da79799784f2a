"""Every window in the accounts exactly once, whatever the disk and the link do, in any order."""

import sqlite3
from contextlib import closing

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime_edge.errors import SpoolError
from runtime_edge.transport.accounting import Accounting
from runtime_edge.transport.frame_store import FrameStore
from runtime_edge.transport.spool.spool import ROW_BYTES, Spool

FRAME = b"x" * 100
ROOM = 6 * (len(FRAME) + ROW_BYTES)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spool.db"


def put(frame_store, window, uncertainty=0.5, claim=False):
    frame_store.put(f"pi.new.{window}", window, FRAME, uncertainty, claim)
    return f"pi.new.{window}"


def refuse(monkeypatch, spool):
    def fail(*arguments):
        raise SpoolError("the disk is full")

    monkeypatch.setattr(spool, "put", fail)


def test_a_frame_is_acknowledged_once_it_is_delivered(path):
    accounting = Accounting()
    frame_store = FrameStore(Spool(path, ROOM), "pi.new.", accounting)
    live, waiting = put(frame_store, 0, claim=True), put(frame_store, 1)
    assert frame_store.claim_oldest().message_id == waiting
    assert frame_store.claim_oldest() is None  # both are being sent
    frame_store.settle(live, True)
    frame_store.settle(waiting, False)
    assert frame_store.claim_oldest().message_id == waiting
    frame_store.settle(waiting, True)
    assert (accounting.captured, accounting.acked, accounting.lost(frame_store.spool.depth())) == (2, 2, 0)


def test_a_full_spool_drops_the_least_informative_and_says_why(path):
    accounting = Accounting()
    frame_store = FrameStore(Spool(path, ROOM), "pi.new.", accounting)
    for window in range(8):
        put(frame_store, window, uncertainty=(0.1 if window in (2, 4) else 0.9))
    assert accounting.dropped == {"spool_full": 2}
    assert [frame.index for frame in frame_store.spool.oldest(9)] == [0, 1, 3, 5, 6, 7]


def test_what_a_full_spool_drops_while_it_is_sent_counts_by_how_the_sending_ends(path):
    accounting = Accounting()
    frame_store = FrameStore(Spool(path, ROOM), "pi.new.", accounting)
    first, second = (put(frame_store, window, uncertainty=0.0, claim=True) for window in range(2))
    for window in range(2, 8):
        put(frame_store, window, uncertainty=0.9)
    assert (accounting.undecided, dict(accounting.dropped)) == (2, {})
    frame_store.settle(first, True)
    frame_store.settle(second, False)
    assert (accounting.acked, accounting.undecided, accounting.dropped) == (1, 0, {"spool_full": 1})
    assert accounting.lost(frame_store.spool.depth()) == 0


def test_a_disk_that_refuses_drops_what_is_not_sent_and_no_more(path, monkeypatch):
    accounting = Accounting()
    frame_store = FrameStore(Spool(path, ROOM), "pi.new.", accounting)
    refuse(monkeypatch, frame_store.spool)
    put(frame_store, 0)
    sent, failed = put(frame_store, 1, claim=True), put(frame_store, 2, claim=True)
    frame_store.settle(sent, True)
    frame_store.settle(failed, False)
    assert (accounting.acked, accounting.dropped) == (1, {"spool_refused": 2})
    assert accounting.errors == {"SpoolError": 3}
    assert accounting.lost(frame_store.spool.depth()) == 0


def test_a_damaged_spool_costs_what_lay_in_it_and_is_counted(path):
    old = Spool(path, ROOM)
    old.put("pi.old.1", 1, FRAME, 0.5)
    accounting = Accounting()
    frame_store = FrameStore(old, "pi.new.", accounting)
    for window in range(3):
        put(frame_store, window)
    sending = put(frame_store, 3, claim=True)
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path.write_bytes(b"no database at all" * 100)

    put(frame_store, 4)
    frame_store.settle(sending, True)

    assert accounting.dropped == {"spool_damaged": 3}
    assert (accounting.inherited, accounting.inherited_dropped) == (0, 1)
    assert (accounting.captured, accounting.acked, frame_store.spool.depth()) == (5, 1, 1)
    assert accounting.lost(1) == 0


def test_frames_of_earlier_runs_are_in_accounts_of_their_own(path):
    spool = Spool(path, ROOM)
    for window in range(4):
        spool.put(f"pi.old.{window}", window, FRAME, uncertainty=0.1 * window)
    accounting = Accounting()
    frame_store = FrameStore(spool, "pi.new.", accounting)
    assert accounting.inherited == 4
    claimed = frame_store.claim_oldest()  # the least informative one, too
    for window in range(4):
        put(frame_store, window, uncertainty=0.9)
    frame_store.settle(claimed.message_id, False)
    assert (accounting.inherited, accounting.inherited_dropped) == (2, 2)
    frame_store.settle(frame_store.claim_oldest().message_id, True)
    assert accounting.inherited == 1
    assert (accounting.captured, accounting.acked, dict(accounting.dropped)) == (4, 0, {})
    assert accounting.lost(spool.depth()) == 0


class Anything(RuleBasedStateMachine):
    """Any order of puts, claims, deliveries and failures keeps the sum right and loses nothing."""

    directory = None

    def __init__(self):
        super().__init__()
        self.number = 0
        path = self.directory / "any.db"
        for file in self.directory.glob("any.db*"):
            file.unlink()
        spool = Spool(path, ROOM)
        for window in range(3):
            spool.put(f"pi.old.{window}", window, FRAME, 0.3)
        self.accounting = Accounting()
        self.frame_store = FrameStore(spool, "pi.new.", self.accounting)
        self.claimed = []
        self.delivered = set()

    @rule(uncertainty=st.floats(0, 1), claim=st.booleans(), refused=st.booleans(), over=st.booleans())
    def put(self, uncertainty, claim, refused, over):
        self.number += 1
        if over and self.claimed:
            self.frame_store.settle_soon(self.claimed[0], True)
            self.delivered.add(self.claimed.pop(0))
        real = self.frame_store.spool.put
        if refused:

            def fail(*arguments):
                raise SpoolError("full")

            self.frame_store.spool.put = fail
        message_id = put(self.frame_store, self.number, uncertainty, claim)
        self.frame_store.spool.put = real
        if claim:
            self.claimed.append(message_id)

    @rule()
    def local(self):
        self.frame_store.keep_local()

    @rule()
    def claim(self):
        frame = self.frame_store.claim_oldest()
        if frame is not None:
            assert frame.message_id not in self.claimed
            assert frame.message_id not in self.delivered
            self.claimed.append(frame.message_id)

    @precondition(lambda self: self.claimed)
    @rule(data=st.data(), delivered=st.booleans())
    def settle(self, data, delivered):
        message_id = self.claimed.pop(data.draw(st.integers(0, len(self.claimed) - 1)))
        self.frame_store.settle(message_id, delivered)
        if delivered:
            self.delivered.add(message_id)

    @rule()
    def give_up(self):
        self.frame_store.give_up()
        self.claimed.clear()

    @invariant()
    def every_window_is_somewhere_once(self):
        a, depth = self.accounting, self.frame_store.depth()
        own = depth - a.inherited
        assert a.captured == a.acked + a.kept_local + sum(a.dropped.values()) + a.undecided + own
        assert a.lost(depth) == 0
        assert a.acked == sum(message_id.startswith("pi.new.") for message_id in self.delivered)
        stored = [frame.message_id for frame in self.frame_store.spool.oldest(100)]
        assert a.inherited == sum(message_id.startswith("pi.old.") for message_id in stored)

    def teardown(self):
        self.frame_store.close()


def test_in_any_order_the_sum_is_right(tmp_path):
    machine = type("Here", (Anything,), {"directory": tmp_path})
    quiet = settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(machine, settings=quiet)


def test_what_is_settled_soon_is_settled_with_the_next_put(path, connections):
    accounting = Accounting()
    frame_store = FrameStore(Spool(path, ROOM), "pi.new.", accounting)
    sent, failed = put(frame_store, 0, claim=True), put(frame_store, 1, claim=True)
    frame_store.settle_soon(sent, True)
    frame_store.settle_soon(failed, False)
    assert accounting.acked == 0
    written = []
    connections[0].set_trace_callback(lambda statement: written.append(statement.split()[0]))
    put(frame_store, 2)
    assert written.count("COMMIT") == 1, "the disk is written once"
    assert accounting.acked == 1
    assert [frame.index for frame in frame_store.spool.oldest(9)] == [1, 2]
    assert frame_store.claim_oldest().message_id == failed
    assert accounting.lost(frame_store.depth()) == 0


@pytest.mark.parametrize("ask", ["depth", "state", "report", "claim_oldest", "close"])
def test_nothing_that_is_over_stays_unsettled(path, ask):
    accounting = Accounting()
    frame_store = FrameStore(Spool(path, ROOM), "pi.new.", accounting)
    frame_store.settle_soon(put(frame_store, 0, claim=True), True)
    getattr(frame_store, ask)()
    assert accounting.acked == 1
    assert Spool(path, ROOM).depth() == 0
