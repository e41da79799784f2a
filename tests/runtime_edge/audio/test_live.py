"""What stands between a thread that captures or reads audio and its reader."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from waiting import until

from runtime_edge.audio import Clock, Counters, Windower
from runtime_edge.audio.live import FrameQueue, IdleWaiter, read_ahead
from runtime_edge.audio.stream import SourceAudio, to_blocks
from runtime_edge.errors import SourceError

RATE = 16_000


class Time:
    def __init__(self) -> None:
        self.seconds = 0.0
        self.clock = Clock(lambda: 10**18 + round(self.seconds * 1e9), lambda: self.seconds)


def put(queue: FrameQueue, now: Time, first: int, count: int = 1_600) -> int:
    """Capture `count` samples that carry their own number, in real time."""
    now.seconds += count / RATE
    queue.put((np.arange(first, first + count) / 2**23).astype(np.float32)[:, None])
    return first + count


def test_a_reader_that_keeps_up_gets_everything_in_order() -> None:
    now, counters = Time(), Counters()
    queue = FrameQueue(RATE, 1.0, counters, now.clock)
    first = 0
    for _ in range(5):
        first = put(queue, now, first)
    queue.close()

    blocks = list(to_blocks(queue.read(), RATE, counters, queue.anchor_ns, now.clock, None))

    samples = np.concatenate([block.samples for block in blocks]) * 2**23
    np.testing.assert_array_equal(samples, np.arange(8_000))
    assert counters.overruns == counters.dropped_samples == 0
    assert blocks[0].start_time_ns == 10**18
    assert blocks[-1].end_time_ns == 10**18 + 500_000_000
    assert [block.ready_at for block in blocks] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5]), "not when it was read"


def test_too_slow_a_reader_loses_the_oldest_half_and_knows_how_much() -> None:
    now, counters = Time(), Counters()
    queue = FrameQueue(RATE, 2.0, counters, now.clock)
    first = 0
    for _ in range(21):  # 2.1 s into a queue of 2 s
        first = put(queue, now, first)
    queue.close()

    blocks = list(to_blocks(queue.read(), RATE, counters, queue.anchor_ns, now.clock, None))

    samples = np.concatenate([block.samples for block in blocks]) * 2**23
    np.testing.assert_array_equal(samples, np.arange(21 * 1_600 - 16_000, 21 * 1_600))
    assert counters.overruns == 1
    assert counters.dropped_samples == 21 * 1_600 - 16_000
    assert blocks[0].gap_samples == counters.dropped_samples
    assert blocks[-1].end_time_ns == 10**18 + 2_100_000_000, "time stamps are those of the capture"


def test_a_reader_slower_than_the_audio_still_gets_whole_windows() -> None:
    # Every window takes 3 s to work on while 0.5 s of new audio is a window's hop.
    now, counters = Time(), Counters()
    queue = FrameQueue(RATE, 4.0, counters, now.clock)
    blocks = to_blocks(queue.read(), RATE, counters, queue.anchor_ns, now.clock, None)
    windower = Windower(16_000, 8_000, counters=counters)
    first = 0
    for _ in range(10):
        first = put(queue, now, first)
    seen = []
    for block in blocks:
        for window in windower.push(block):
            samples = window.samples * 2**23
            np.testing.assert_array_equal(np.diff(samples), 1)
            assert window.capture_time_ns - 10**18 == pytest.approx((float(samples[-1]) + 1) / RATE * 1e9, abs=2)
            seen.append(window.index)
            for _ in range(30):
                first = put(queue, now, first)
        if len(seen) >= 20:
            break

    assert len(seen) == 20
    assert seen == sorted(set(seen))
    assert seen[-1] == pytest.approx(now.seconds / 0.5, abs=16), "indices follow the time line"
    assert counters.overruns > 5


def test_a_source_that_stalls_leaves_a_gap_of_that_length() -> None:
    now, counters = Time(), Counters()
    queue = FrameQueue(RATE, 30.0, counters, now.clock)
    first = put(queue, now, 0)
    now.seconds += 5.0
    put(queue, now, first)
    queue.close()

    blocks = list(to_blocks(queue.read(), RATE, counters, queue.anchor_ns, now.clock, None))

    assert blocks[1].gap_samples == pytest.approx(80_000, abs=2)
    assert blocks[1].end_time_ns - 10**18 == pytest.approx(5.2e9, abs=1e5)
    assert counters.overruns == 0


class AnnouncedWaiter(IdleWaiter):
    """Says each time that a reader has nothing to read."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Semaphore(0)

    def wait(self, until: Callable[[], bool], timeout_s: float | None = None) -> bool:
        self.waiting.release()
        return super().wait(until, timeout_s)


def test_a_thread_hands_over_to_a_waiting_reader_and_its_error_arrives() -> None:
    counters, waiter = Counters(), AnnouncedWaiter()
    queue = FrameQueue(RATE, 1.0, counters, Clock(), waiter)

    def capture() -> None:
        for _ in range(3):
            waiter.waiting.acquire()
            queue.put(np.zeros((160, 1), np.float32))
        queue.close(SourceError("the cable was pulled"))

    thread = threading.Thread(target=capture)
    thread.start()
    raws = queue.read()
    received = [len(next(raws).frames) for _ in range(3)]
    with pytest.raises(SourceError, match="the cable was pulled"):
        next(raws)
    thread.join()

    assert received == [160, 160, 160]


def test_silence_from_the_hardware_ends_after_the_reader_s_patience() -> None:
    queue = FrameQueue(RATE, 1.0, Counters(), Clock())

    with pytest.raises(SourceError, match=r"no audio for 0\.05 s"):
        next(queue.read(0.05))


def blocks_without_end(read: list[int]) -> Iterator[SourceAudio]:
    """Blocks that carry their number, which is noted."""
    for number in itertools.count():
        read.append(number)
        yield SourceAudio(np.full((1, 1), number, np.float32), RATE, number == 0)


def test_reading_ahead_keeps_the_order_and_stays_a_few_blocks_ahead() -> None:
    read: list[int] = []
    ahead = read_ahead(blocks_without_end(read), IdleWaiter())

    received, furthest = [], 0
    for number in range(1000):
        received.append(int(next(ahead).frames[0, 0]))
        furthest = max(furthest, len(read) - number)

    assert received == list(range(1000))
    assert furthest <= 11
    until(lambda: len(read) > 1005)
    ahead.close()


def test_a_reader_ahead_whom_nobody_asks_any_more_ends() -> None:
    before = set(threading.enumerate())
    ahead = read_ahead(blocks_without_end([]), IdleWaiter())
    next(ahead)

    ahead.close()

    assert until(lambda: set(threading.enumerate()) <= before, "the thread ends")


def test_what_a_reader_ahead_fails_with_comes_after_what_it_has_read() -> None:
    def broken() -> Iterator[SourceAudio]:
        yield from itertools.islice(blocks_without_end([]), 3)
        raise SourceError("the cable was pulled")

    ahead = read_ahead(broken(), IdleWaiter())

    assert [int(next(ahead).frames[0, 0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(SourceError, match="the cable was pulled"):
        next(ahead)
