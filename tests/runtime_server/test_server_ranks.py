"""Two ranks of one server, both in this process: what each of them does when frames come and generations follow."""

import asyncio

import pytest
import torch.distributed as dist
from reading import read_release

from runtime_edge.errors import UsageError
from runtime_edge.formats import subjects
from runtime_edge.formats.wire import decode_replies
from runtime_server.broker.hub import Hub
from runtime_server.releases.release_gate import ReleaseConfig
from runtime_server.server import Server
from runtime_server.serving.server_config import ServerConfig
from runtime_server.serving.server_status import ServerStatus
from runtime_server.training.ranks import Ranks
from runtime_server.training.trainer import TrainConfig

# torch copies graphs within a filter of warnings, which holds for all threads until the first of them is done.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
NAMES = [next(f"pi-{n}" for n in range(99) if subjects.partition(f"pi-{n}") % 2 == rank) for rank in range(2)]
"""A device of each rank's."""


@pytest.fixture
def run_ranks(tiny_encoder, small_bundle, tmp_path, broker, together):
    """`run_ranks(work)` runs `await work(their parts, hub)` while two ranks serve; returns (result, their statuses)."""
    config = ServerConfig(
        bundle=small_bundle.path,
        state=tmp_path / "server",
        broker=broker.url,
        train=TrainConfig(batch=8, min_windows=16, learning_rate=1e-4),
        release=ReleaseConfig(every_steps=5, least_s=0, tolerance=1.0),
    )

    async def life(ranks, work):
        servers = [Server(tiny_encoder, config, one) for one in ranks]
        started = [asyncio.get_running_loop().create_future() for _ in servers]
        running = [
            asyncio.create_task(server.run(future.set_result)) for server, future in zip(servers, started, strict=True)
        ]
        try:
            parts = await asyncio.wait_for(asyncio.gather(*started), 60)
            hub = Hub(broker.url, "test")
            await hub.connect()
            try:
                result = await asyncio.wait_for(work(parts, hub), 60)
            finally:
                await hub.close()
        finally:
            for server in servers:
                server.stop()
            statuses = await asyncio.wait_for(asyncio.gather(*running), 60)
        return result, statuses

    def run(work):
        ranks = together(2, lambda one: one)
        return asyncio.run(life(ranks, work))

    return run


async def send(hub, name, window, frame, inbox=None):
    headers = {subjects.IDENTITY_HEADER: subjects.message_id(name, "boot", window)}
    if inbox is not None:
        headers[subjects.REPLY_HEADER] = inbox
    await hub.stream.publish(subjects.frames(name), frame, headers=headers)


def test_every_rank_completes_a_generation_before_devices_hear_of_it(run_ranks, sounds, frame_of):
    async def work(servers, hub):
        bucket = await hub.stream.key_value(subjects.RELEASES)
        watcher = await bucket.watch("rpi4")
        for window, sound in enumerate(sounds):
            for name in NAMES:
                await send(hub, name, window, frame_of(sound, window, 1))
        async for entry in watcher:
            if entry is not None and (number := read_release(entry.value).generation) > 1:
                break
        known = [server.loaded.generations.get(number) is not None for server in servers]
        answers = []
        for name in NAMES:
            inbox = f"{subjects.inbox(name)}.abc.{len(sounds)}"
            replies = await hub.client.subscribe(inbox)
            await send(hub, name, len(sounds), frame_of(sounds[0], len(sounds), 4, generation=number), inbox)
            answers.extend(decode_replies((await replies.next_msg(10)).data))
        return known, answers, await hub.server_status()

    (known, answers, status), (first, second) = run_ranks(work)
    assert known == [True, True]
    assert [answer.status for answer in answers] == ["ok", "ok"]
    assert status["windows"] == dict.fromkeys(NAMES, len(sounds) + 1)
    assert [rank["windows"] for rank in status["ranks"]] == [len(sounds) + 1] * 2
    assert first["windows"] == {NAMES[0]: len(sounds) + 1}
    assert second["windows"] == {NAMES[1]: len(sounds) + 1}
    assert first["training_steps"] == second["training_steps"] >= 5
    assert [step["total"] for step in first["losses"]] == [step["total"] for step in second["losses"]]
    assert second["releases"] == [], "another rank than the first one has released"


def test_the_first_rank_says_what_ails_another(run_ranks):
    async def work(servers, hub):
        first, second = (ServerStatus(parts) for parts in servers)
        well = await first.troubles()
        servers[1].jobs.start("job", asyncio.sleep(0.0))
        return well, await first.troubles(), await second.troubles()

    (well, troubles, own), _ = run_ranks(work)
    assert well == []
    assert troubles == ["rank 1: the job has ended"]
    assert own == ["the job has ended"]


def test_ranks_need_a_broker_that_outlives_them(tiny_encoder, small_bundle, tmp_path):
    with pytest.raises(UsageError, match="--broker: several ranks need one"):
        Server(tiny_encoder, ServerConfig(small_bundle.path, tmp_path / "server"), Ranks(0, 2, dist.ProcessGroup))
