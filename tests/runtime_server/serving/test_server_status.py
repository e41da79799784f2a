"""Jobs of a server: it says which have ended, and ends them."""

import asyncio
from typing import Any

import pytest

from runtime_server.serving.server_status import STARTING, Jobs


async def for_ever() -> None:
    await asyncio.Event().wait()


async def fails() -> None:
    raise OSError("no room")


def play(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work(Jobs(), asyncio.Event()), 10.0))


def test_a_server_without_jobs_is_starting_and_a_job_that_ended_is_a_trouble() -> None:
    async def work(jobs: Jobs, stopping: asyncio.Event) -> list[list[str]]:
        told = [jobs.troubles]
        jobs.start("ingest", for_ever())
        told.append(jobs.troubles)
        jobs.start("watch", asyncio.sleep(0.0))
        await jobs.wait(stopping)
        told.append(jobs.troubles)
        await jobs.end(patiently="trainer")
        return told

    assert play(work) == [[STARTING], [], ["the watch has ended"]]


def test_what_a_job_raises_ends_the_waiting() -> None:
    async def work(jobs: Jobs, stopping: asyncio.Event) -> None:
        jobs.start("ingest", for_ever())
        jobs.start("ledger", fails())
        try:
            await jobs.wait(stopping)
        finally:
            await jobs.end(patiently="trainer")

    with pytest.raises(OSError, match="no room"):
        play(work)


def test_the_one_that_ends_by_itself_is_waited_for() -> None:
    async def work(jobs: Jobs, stopping: asyncio.Event) -> list[str]:
        heard: list[str] = []

        async def trains() -> None:
            for _ in range(20):  # longer than all others take to end
                await asyncio.sleep(0)
            heard.append("saved")

        jobs.start("trainer", trains())
        jobs.start("ingest", for_ever())
        stopping.set()
        await jobs.wait(stopping)
        await jobs.end(patiently="trainer")
        return heard

    assert play(work) == ["saved"]
