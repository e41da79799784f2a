"""One thread does what it is asked for, one thing after the other, also while it waits for something else."""

import asyncio
import threading

import pytest

from runtime_edge.base.worker import Worker


def test_everything_runs_in_one_thread_in_the_order_asked_for():
    done = []

    def note(name):
        done.append((name, threading.current_thread()))

    async def work():
        with Worker() as worker:
            await asyncio.gather(*(worker.run(note, name) for name in "abc"))
            await worker.run(note, "d")

    asyncio.run(work())
    names, threads = zip(*done, strict=True)
    assert names == ("a", "b", "c", "d")
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()
    assert not threads[0].is_alive()


def test_what_a_call_fails_with_is_raised_where_it_was_asked_for_and_the_worker_goes_on():
    async def work():
        with Worker() as worker:
            with pytest.raises(ZeroDivisionError):
                await worker.run(lambda: 1 / 0)
            return await worker.run(lambda: "goes on")

    assert asyncio.run(work()) == "goes on"


def test_a_call_cancelled_before_its_turn_is_not_done():
    done, first_may_end = [], threading.Event()

    async def work():
        with Worker() as worker:
            first = asyncio.create_task(worker.run(first_may_end.wait))
            second = asyncio.create_task(worker.run(done.append, "cancelled"))
            await asyncio.sleep(0)
            second.cancel()
            first_may_end.set()
            await first
            await worker.run(done.append, "asked for")

    asyncio.run(work())
    assert done == ["asked for"]


def test_a_worker_that_waits_does_what_it_is_asked_for_meanwhile():
    done, came = [], threading.Event()

    def long(worker):
        holds = worker.wait(came.is_set)
        done.append(("long", holds, threading.current_thread()))

    def short():
        done.append(("short", came.is_set(), threading.current_thread()))
        return 1 / 0

    async def work():
        with Worker() as worker:
            waiting = asyncio.create_task(worker.run(long, worker))
            with pytest.raises(ZeroDivisionError):
                await worker.run(short)
            came.set()
            worker.wake()
            await waiting

    asyncio.run(work())
    assert [(name, held) for name, held, _ in done] == [("short", False), ("long", True)]
    assert done[0][2] is done[1][2]


def test_what_was_asked_for_before_comes_first_even_if_there_is_nothing_to_wait_for():
    done, go = [], threading.Event()

    def long(worker):
        go.wait()
        assert worker.wait(lambda: True)
        done.append("long")

    async def work():
        with Worker() as worker:
            first = asyncio.create_task(worker.run(long, worker))
            others = [asyncio.create_task(worker.run(done.append, name)) for name in ("a", "b")]
            await asyncio.sleep(0)
            go.set()
            await asyncio.gather(first, *others)

    asyncio.run(work())
    assert done == ["a", "b", "long"]


def test_a_call_that_brings_about_what_is_waited_for_needs_no_wake():
    came = []

    async def work():
        with Worker() as worker:
            waiting = asyncio.create_task(worker.run(worker.wait, lambda: bool(came)))
            await worker.run(came.append, "now")
            return await waiting

    assert asyncio.run(work()) is True


def test_waiting_ends_with_its_time():
    async def work():
        with Worker() as worker:
            asking = asyncio.create_task(worker.run(worker.wait, lambda: False, 0.05))
            await worker.run(lambda: None)
            return await asking, await worker.run(worker.wait, lambda: False, 0.0)

    assert asyncio.run(work()) == (False, False)


def test_what_is_asked_for_while_it_is_shut_down_is_done():
    done, go = [], threading.Event()

    async def work():
        with Worker() as worker:
            tasks = [asyncio.create_task(worker.run(call)) for call in (go.wait, lambda: done.append("last"))]
            await asyncio.sleep(0)
            threading.Timer(0.05, go.set).start()
        await asyncio.gather(*tasks)

    asyncio.run(work())
    assert done == ["last"]


def test_a_loop_is_told_when_the_worker_waits_and_not_before():
    heard, seen = [], []

    def work_on(worker, loop, both):
        worker.tell(loop, heard.append, "first")
        worker.tell(loop, heard.append, "second")
        worker.tell(loop, both.set)
        seen.append(list(heard))
        worker.wait(both.is_set)
        seen.append(list(heard))

    async def work():
        both = asyncio.Event()
        with Worker() as worker:
            working = asyncio.ensure_future(worker.run(work_on, worker, asyncio.get_running_loop(), both))
            await both.wait()
            worker.wake()
            await working

    asyncio.run(work())
    assert seen == [[], ["first", "second"]]


def test_a_result_does_not_wait_for_the_call_behind_it():
    may_end = threading.Event()

    async def work():
        with Worker() as worker:
            first, second = (asyncio.ensure_future(worker.run(call)) for call in (list, may_end.wait))
            assert await first == []
            assert not second.done()
            may_end.set()
            assert await second

    asyncio.run(work())


def test_what_is_told_comes_before_the_result_of_the_call_that_told_it():
    heard = []

    async def work():
        loop = asyncio.get_running_loop()
        with Worker() as worker:
            await worker.run(worker.tell, loop, heard.append, "told")
            heard.append("result")

    asyncio.run(work())
    assert heard == ["told", "result"]
