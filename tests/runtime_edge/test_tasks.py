"""Ending tasks for certain."""

import asyncio

from runtime_edge.tasks import cancel_all


def test_a_task_that_loses_a_cancellation_is_asked_again():
    async def stubborn():
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue  # what asyncio.wait_for does when a result and a cancellation meet
        await asyncio.sleep(60)

    async def work():
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        await asyncio.wait_for(cancel_all([task]), 5.0)
        return task

    assert asyncio.run(work()).cancelled()


def test_results_and_failures_of_tasks_that_had_ended_are_let_be(caplog):
    async def fails():
        raise ValueError("broken")

    async def work():
        tasks = [asyncio.create_task(fails()), asyncio.create_task(asyncio.sleep(0, "done"))]
        await asyncio.sleep(0.01)
        await cancel_all(tasks)
        return tasks[1].result()

    assert asyncio.run(work()) == "done"
    assert "broken" in caplog.text
