"""Windows wait for each other, and go in one message."""

import asyncio

import pytest

from runtime_edge.formats.wire import MAX_WINDOWS, decode_frame, encode_frame
from runtime_edge.transport.packing import Packer

HOLD_S, HOP_S = 1.6, 0.5


def frame(window, cut=3, payload=b"payload"):
    return encode_frame(window, window, 1, cut, "int8", False, 0.5, payload, model=7)


class Timer:
    def __init__(self, at, happen):
        self.at, self.happen = at, happen

    def when(self):
        return self.at

    def cancel(self):
        self.happen = lambda: None


class Timers:
    def __init__(self):
        self.now, self.set = 0.0, []

    def time(self):
        return self.now

    def call_at(self, when, callback):
        self.set.append(Timer(when, callback))
        return self.set[-1]

    def advance(self, to):
        while due := [timer for timer in self.set if timer.at <= to]:
            first = min(due, key=Timer.when)
            self.set.remove(first)
            self.now = first.at
            first.happen()
        self.now = to


def played(steps, hop_s=HOP_S):
    """Messages as (time, windows, data), of frames that come as (time, frame, embedding)."""
    sent, timers, loop = [], Timers(), asyncio.new_event_loop()
    packer = Packer(lambda windows, data: sent.append((timers.now, windows, data)), timers)
    for at, data, embedding in steps:
        timers.advance(at)
        window = decode_frame(data)[0][0].window
        packer.add(f"pi-1.boot.{window}", data, embedding, loop.create_future(), HOLD_S, hop_s)
    timers.advance(10.0)
    loop.close()
    return sent


def test_those_that_come_within_the_hold_go_together_and_the_last_one_does_not_wait():
    ((at, windows, data),) = played([(index * HOP_S, frame(index), True) for index in range(4)])

    assert at == 1.5
    assert [window.message_id for window in windows] == [f"pi-1.boot.{index}" for index in range(4)]
    assert [header.window for header, _ in decode_frame(data)] == [0, 1, 2, 3]
    assert [payload for _, payload in decode_frame(data)] == [b"payload"] * 4


def test_one_that_stays_alone_goes_as_it_was_when_its_time_is_up():
    ((at, _, data),) = played([(0.0, frame(5), True)], hop_s=HOLD_S / 2)
    assert at == HOLD_S
    assert data == frame(5)


def test_what_waits_is_sent_once_no_window_has_come_for_three_hops():
    ((at, windows, _),) = played([(0.0, frame(0), True), (0.1, frame(1), True)], hop_s=0.2)
    assert at == pytest.approx(0.7)
    assert len(windows) == 2


def test_windows_of_another_kind_do_not_go_together():
    steps = [(0.0, frame(0), True), (0.1, frame(1, cut=4), True), (0.2, frame(2, cut=4), False)]
    sent = played(steps)
    assert [[window.header.window for window in windows] for _, windows, _ in sent] == [[0], [1], [2]]
    assert [windows[0].embedding for _, windows, _ in sent] == [True, True, False]


def test_a_message_has_no_more_windows_than_a_frame_may_hold():
    sent = played([(0.0, frame(index), True) for index in range(MAX_WINDOWS + 3)], hop_s=0.0)
    assert [len(windows) for _, windows, _ in sent] == [MAX_WINDOWS, 3]


def test_a_message_does_not_grow_without_bound():
    sent = played([(0.0, frame(index, payload=bytes(100_000)), True) for index in range(6)], hop_s=0.0)
    assert [len(windows) for _, windows, _ in sent] == [3, 3]
