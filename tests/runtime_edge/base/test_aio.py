"""Ending tasks for certain."""

import asyncio

import pytest

from runtime_edge.base.aio import cancel_all, finish_unless, next_within, within


async def for_ever():
    await asyncio.Event().wait()


@pytest.mark.integration
def test_a_task_that_loses_a_cancellation_is_asked_again():
    async def stubborn():
        for _ in range(2):
            try:
                await for_ever()
            except asyncio.CancelledError:
                continue  # what asyncio.wait_for does when a result and a cancellation meet
        await for_ever()

    async def work():
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        await asyncio.wait_for(cancel_all([task]), 5.0)
        return task

    assert asyncio.run(work()).cancelled()


@pytest.mark.integration
def test_work_that_loses_a_cancellation_is_over_when_its_time_is_up():
    ended = []

    async def stubborn():
        try:
            try:
                await for_ever()
            except asyncio.CancelledError:
                await for_ever()
        finally:
            ended.append(True)

    async def work():
        with pytest.raises(asyncio.TimeoutError):
            await within(stubborn(), 0.05)
        return list(ended), await within(asyncio.sleep(0, "done"), 5.0)

    assert asyncio.run(asyncio.wait_for(work(), 10.0)) == ([True], "done")


def test_a_cancellation_ends_the_work_that_is_waited_for():
    ended = []

    async def work():
        began = asyncio.Event()

        async def long():
            try:
                began.set()
                await for_ever()
            finally:
                ended.append(True)

        waiting = asyncio.create_task(within(long(), 60.0))
        await began.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(work())
    assert ended == [True]


def test_results_and_failures_of_tasks_that_had_ended_are_let_be(caplog):
    async def fails():
        raise ValueError("broken")

    async def work():
        tasks = [asyncio.create_task(fails()), asyncio.create_task(asyncio.sleep(0, "done"))]
        await asyncio.wait(tasks)
        await cancel_all(tasks)
        return tasks[1].result()

    assert asyncio.run(work()) == "done"
    assert "broken" in caplog.text


def test_the_next_item_or_nothing_within_a_time():
    async def work():
        queue = asyncio.Queue()
        nothing = await next_within(queue, 0.01)
        asyncio.get_running_loop().call_later(0.05, queue.put_nowait, "late")
        return nothing, await next_within(queue, 5.0), queue.qsize()

    assert asyncio.run(work()) == (None, "late", 0)


def test_an_item_and_a_cancellation_at_once_cancel():
    class Announced(asyncio.Queue):
        async def get(self):
            asked.set()
            return await super().get()

    asked = asyncio.Event()

    async def work():
        queue = Announced()
        task = asyncio.create_task(next_within(queue, 60.0))
        await asked.wait()
        queue.put_nowait("item")
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())


@pytest.mark.parametrize(("stopped", "expected"), [(True, "stopped"), (False, "done")])
def test_work_goes_on_until_it_is_done_or_the_event_is_set(stopped, expected):
    async def work():
        stopping, ended = asyncio.Event(), "stopped"

        async def long():
            nonlocal ended
            if stopped:
                stopping.set()
                await asyncio.Event().wait()
            ended = "done"

        await finish_unless(stopping, long())
        return ended

    assert asyncio.run(work()) == expected
