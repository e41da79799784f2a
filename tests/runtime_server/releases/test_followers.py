"""The first rank and the others: what is kept everywhere, and how all of them are."""

import shutil

import pytest

from runtime_edge.errors import FormatError, LinkError
from runtime_server.broker.hub import Hub
from runtime_server.releases.followers import Follower, Followers, RankStatus, together
from runtime_server.state.server_state import ServerState
from runtime_server.suffix.generations import Generations
from streamsplit_compile.bundle.bundle_writer import write_manifest

OWN = {
    "counters": {"windows": 2}, "windows": {"pi-1": 2}, "out_of_range": {}, "uptime_s": 3.0, "training_steps": 4,
    "generation": 1, "ledger": {"damaged_lines": 1},
}  # fmt: skip
OTHER = {
    "counters": {"windows": 5, "refused": 1}, "windows": {"pi-2": 5}, "out_of_range": {"pi-2": 3}, "uptime_s": 1.0,
    "training_steps": 4, "ledger": {"damaged_lines": 2},
}  # fmt: skip


@pytest.fixture
def state(tmp_path, numbered, tiny_encoder):
    """A state directory with generations 1 to 7."""
    kept = ServerState(tmp_path / "server")
    for number in range(1, 8):
        shutil.copytree(numbered(number).path, kept.bundle_path(number))
        write_manifest(kept.bundle_path(number), numbered(number).manifest, None)
        kept.save_weights(number, tiny_encoder.tensors)
    return kept


@pytest.fixture
def meet(play, broker, state, tiny_encoder):
    """`meet(work)`: `await work(followers, generations of rank 1)`."""

    async def alive(hub, work):
        other = Hub(broker.url, "rank-1")
        await other.connect()
        generations = Generations(tiny_encoder.graph)

        async def status():
            return OTHER

        await Follower(other, 1, generations, state, status).start()
        try:
            return await work(Followers(hub, 2), generations)
        finally:
            await other.close()

    return lambda work: play(lambda hub: alive(hub, work))


def test_a_rank_completes_what_the_first_one_keeps_and_no_more(meet):
    async def work(followers, generations):
        await followers.keep([1, 2, 3, 4])
        first = [generation.number for generation in generations.kept()]
        await followers.keep([1, 4, 5, 6, 7])  # 1 is pinned
        return first, [generation.number for generation in generations.kept()]

    assert meet(work) == ([1, 2, 3, 4], [1, 4, 5, 6, 7])


def test_a_generation_that_a_rank_cannot_load_is_not_released(meet):
    async def work(followers, generations):
        with pytest.raises(LinkError, match=r"rank 1 cannot complete generations \[8\]: .*00008"):
            await followers.keep([8])

    meet(work)


def test_a_rank_that_cannot_say_how_it_is_counts_as_one_that_does_not_answer(play, broker, state, tiny_encoder):
    async def status():
        raise FormatError("damaged")

    async def work(hub):
        other = Hub(broker.url, "rank-1")
        await other.connect()
        try:
            await Follower(other, 1, Generations(tiny_encoder.graph), state, status).start()
            others = await Followers(hub, 2).statuses()
        finally:
            await other.close()
        assert others == {}
        assert together(OWN, others, 2)["ranks"][1] == {"rank": 1, "missing": True}

    play(work)


def test_a_rank_that_is_not_there_is_waited_for_and_then_named(play):
    async def work(hub):
        with pytest.raises(LinkError, match="rank 1 is not running"):
            await Followers(hub, 2, keep_s=0.5).keep([1])
        assert await Followers(hub, 2).statuses() == {}
        assert await Followers(hub, 1).statuses() == {}
        await Followers(hub, 1).keep([1])

    play(work)


def test_the_status_of_all_ranks_is_one(meet):
    async def work(followers, generations):
        return await followers.statuses()

    others = meet(work)
    assert others == {1: RankStatus(**OTHER)}
    status = together(OWN, others, 3)
    assert status["windows"] == {"pi-1": 2, "pi-2": 5}
    assert status["counters"] == {"windows": 7, "refused": 1}
    assert status["out_of_range"] == {"pi-2": 3}
    assert status["ledger"] == {"damaged_lines": 3}
    assert status["generation"] == 1
    assert status["ranks"] == [
        {"rank": 0, "windows": 2, "uptime_s": 3.0, "training_steps": 4},
        {"rank": 1, "windows": 5, "uptime_s": 1.0, "training_steps": 4},
        {"rank": 2, "missing": True},
    ]
    assert together(OWN, {}, 1) == OWN
