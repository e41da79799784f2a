"""The worker and the event loop take turns."""

import asyncio
import threading
import time

import pytest

from runtime_edge.base.worker import Worker


def test_windows_and_the_loops_calls_take_turns():
    """A thread that asks for its turn again and again keeps nobody waiting for longer than one of its own."""
    inside, waited, stopping = [], [], threading.Event()
    turns = 0

    def turn(who, seconds):
        nonlocal turns
        assert not inside
        inside.append(who)
        time.sleep(seconds)
        inside.remove(who)
        turns += 1
        return turns

    async def work():
        with Worker() as worker:

            def windows():
                while not stopping.is_set():
                    worker.run_here(turn, "window", 0.02)

            thread = threading.Thread(target=windows)
            thread.start()
            for _ in range(10):
                before = turns
                waited.append(await worker.run(turn, "loop", 0.0) - before - 1)
            stopping.set()
            await asyncio.to_thread(thread.join)

    asyncio.run(work())
    assert sorted(waited)[5] <= 1, "turns that others had meanwhile; more only where the system lets a thread wait"


def test_what_fails_in_a_thread_of_ones_own_is_raised_there_and_ends_no_turn():
    async def work():
        with Worker() as worker:
            with pytest.raises(ZeroDivisionError):
                await asyncio.to_thread(worker.run_here, lambda: 1 / 0)
            return await worker.run(lambda: "goes on")

    assert asyncio.run(work()) == "goes on"


def test_a_call_cancelled_before_its_turn_is_not_done():
    done, first_may_end = [], threading.Event()

    async def work():
        with Worker() as worker:
            first = asyncio.create_task(worker.run(first_may_end.wait))
            second = asyncio.create_task(worker.run(done.append, "cancelled"))
            await asyncio.sleep(0.02)
            second.cancel()
            first_may_end.set()
            await first
            await worker.run(done.append, "asked for")

    asyncio.run(work())
    assert done == ["asked for"]
