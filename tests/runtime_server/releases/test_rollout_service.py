"""A rollout on a real broker: reports in, records out, and what an operator is answered."""

import asyncio
import contextlib

import msgspec
import pytest
from reading import read_release
from waiting import eventually

from runtime_edge.errors import LinkError, UsageError
from runtime_edge.formats import subjects
from runtime_server.broker.hub import Hub
from runtime_server.releases.rollout import Rollout, RolloutConfig
from runtime_server.releases.rollout_service import RELEASES_SUBJECT, RolloutService, request
from runtime_server.state.server_state import ServerState
from runtime_server.suffix.generations import Generations
from streamsplit_compile.bundle.calibrate import calibration_set_for
from streamsplit_compile.bundle.compiler import recompile

CONFIG = RolloutConfig(canary_from=100, healthy_s=0.0)


@pytest.fixture(scope="module")
def compiled(small_bundle, tiny_encoder, signing_key, tmp_path_factory):
    """Generations 1 to 6 with their weights."""
    directory, windows = (
        tmp_path_factory.mktemp("compiled"),
        calibration_set_for(small_bundle.manifest.info, None).windows[:2],
    )
    made = {1: (small_bundle, tiny_encoder.tensors)}
    for number in range(2, 7):
        tensors = {**tiny_encoder.tensors, "head.weight": tiny_encoder.tensors["head.weight"] * (1 + number / 100)}
        path = directory / str(number)
        made[number] = (
            recompile(small_bundle, tensors, path, generation=number, windows=windows, reference=None, key=signing_key),
            tensors,
        )
    return made


@pytest.fixture
def serve(broker, compiled, tiny_encoder, tmp_path):
    """`serve(work, *numbers)` runs `await work(service, hub, rollout)` on a server that knows these generations."""

    def run(work, *numbers):
        async def life():
            hub = Hub(broker.url, "server")
            await hub.connect(create=True)
            rollout = Rollout(tmp_path / "rollout.json", CONFIG)
            generations = Generations(tiny_encoder.graph)
            generations.protect(rollout.running)
            for number in numbers:
                generations.add(*compiled[number])
            state = ServerState(tmp_path / "server")
            service = RolloutService(hub, rollout, generations, state, None)
            await service.start(rollout.begin({n: compiled[n][0].digest for n in numbers}))
            running = asyncio.create_task(service.run())
            try:
                return await asyncio.wait_for(work(service, hub, rollout), 60.0)
            finally:
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running
                await hub.close()

        return asyncio.run(life())

    return run


async def told(hub, target="rpi4"):
    bucket = await hub.stream.key_value(subjects.RELEASES)
    return read_release((await bucket.get(target)).value)


async def until(hub, condition):
    """The first record that meets a condition."""

    async def met():
        record = await told(hub)
        return record if condition(record) else None

    return await eventually(met)


async def report(hub, device, bundle, on_trial=False, failed=None):
    failures = [] if failed is None else [{"manifest": failed.digest, "event": "rolled_back", "reason": "died"}]
    data = {"bundle": bundle.digest, "on_trial": on_trial, "update_failures": failures}
    bucket = await hub.stream.key_value(subjects.PRESENCE)
    await bucket.put(device, msgspec.json.encode(data))


def test_a_first_start_tells_every_target_what_is_stable(serve, compiled):
    async def work(service, hub, rollout):
        return [await told(hub, target) for target in ("rpi4", "m2")]

    for record in serve(work, 1):
        assert record.manifest == compiled[1][0].digest
        assert (record.share, record.stable, record.rollback, record.oldest) == (1.0, None, False, 1)


def test_a_report_of_a_crash_takes_the_release_back_from_every_target(serve, compiled):
    one, two = compiled[1][0], compiled[2][0]
    serve(lambda service, hub, rollout: told(hub), 1)

    async def work(service, hub, rollout):
        assert (await told(hub)).manifest == two.digest
        assert (await told(hub)).stable.manifest == one.digest
        await report(hub, "pi-1", one)
        await report(hub, "pi-2", one, failed=two)
        record = await until(hub, lambda record: record.manifest == one.digest)
        return record, await told(hub, "m2"), service.status()

    record, other, status = serve(work, 1, 2)
    assert record.rollback
    assert other.manifest == one.digest
    assert status["releases"][0]["failures"] == {"pi-2": "rolled_back: died"}
    assert "after a rollback" in status["held"]

    # A server that starts again does not offer it again.
    async def again(service, hub, rollout):
        return await told(hub), rollout.base

    record, base = serve(again, 1, 2)
    assert (record.manifest, base) == (one.digest, 1)


def test_a_device_that_has_proven_it_gets_it_promoted(serve, compiled):
    two = compiled[2][0]
    serve(lambda service, hub, rollout: told(hub), 1)

    async def work(service, hub, rollout):
        await report(hub, "pi-1", two, on_trial=True)
        await eventually(lambda: service.status()["releases"][0]["devices"] == 1)
        await request(hub, "list")
        waiting = rollout.wanted
        await report(hub, "pi-1", two)
        record = await until(hub, lambda record: record.stable is None)
        return waiting, record, rollout.wanted

    waiting, record, wanted = serve(work, 1, 2)
    assert (waiting.stable, waiting.trial) == (1, 2)
    assert (record.manifest, record.rollback) == (two.digest, False)
    assert (wanted.stable, wanted.trial) == (2, None)


def test_what_the_broker_could_not_hear_it_is_told_when_it_is_back(serve, broker, compiled):
    one, two = compiled[1][0], compiled[2][0]
    serve(lambda service, hub, rollout: told(hub), 1)

    async def work(service, hub, rollout):
        await broker.stop()
        rollout.observe(
            "pi-1", {"bundle": one.digest, "update_failures": [{"manifest": two.digest, "event": "x", "reason": "y"}]}
        )
        await eventually(lambda: rollout.wanted.trial is None)
        await broker.start()
        other = Hub(broker.url, "test")
        await other.connect()
        try:
            return await until(other, lambda record: record.manifest == one.digest)
        finally:
            await other.close()

    record = serve(work, 1, 2)
    assert record.rollback


def test_garbage_for_a_report_changes_nothing(serve, compiled):
    async def work(service, hub, rollout):
        bucket = await hub.stream.key_value(subjects.PRESENCE)
        for data in (b"", b"{", b"[]", b"\xff", b'{"bundle": [], "update_failures": 3}'):
            await bucket.put("pi-1", data)
        await report(hub, "pi-2", compiled[1][0])
        await eventually(lambda: service.status()["releases"][0]["devices"])
        return rollout.present()

    assert serve(work, 1) == ["pi-2"]


def test_generations_are_retired_but_those_that_devices_are_told_to_run(serve, compiled):
    serve(lambda service, hub, rollout: told(hub), 1)

    async def work(service, hub, rollout):
        first = await told(hub)
        rows = {row["generation"]: row for row in service.status()["releases"]}
        await request(hub, "promote")
        return first, rows, await told(hub), {row["generation"]: row for row in service.status()["releases"]}

    first, before, after, rows = serve(work, *range(1, 7))
    assert (first.generation, first.stable.generation, first.oldest) == (6, 1, 1)
    assert not before[1]["retired"]
    assert (after.generation, after.oldest) == (6, 3)
    assert rows[1]["retired"]
    assert not rows[6]["retired"]


def test_what_an_operator_is_answered(serve, broker, compiled):
    async def work(service, hub, rollout):
        with pytest.raises(UsageError, match="generation 9 is not kept here; there are 1, 2"):
            await request(hub, "pin", 9)
        with pytest.raises(UsageError, match="nothing to go back to"):
            await request(hub, "rollback")
        pinned = await request(hub, "pin")
        for garbage in (b"", b"{}", b'{"action": "reboot"}', b'{"action": "pin", "generation": "1"}'):
            answer = await hub.client.request(RELEASES_SUBJECT, garbage)
            assert "error" in msgspec.json.decode(answer.data)
        return pinned, await request(hub, "list")

    pinned, listed = serve(work, 1, 2)
    assert pinned["held"] == listed["held"] == "generation 2 is pinned"

    async def nobody():
        hub = Hub(broker.url, "test")
        await hub.connect()
        try:
            with pytest.raises(LinkError, match="no server answers"):
                await request(hub, "list")
        finally:
            await hub.close()

    asyncio.run(nobody())


def test_a_device_that_reports_without_pause_is_heard_no_more_often_than_now_and_then(serve, monkeypatch):
    heard = []
    monkeypatch.setattr(Rollout, "observe", lambda self, device, report: heard.append((device, report.get("n"))))

    async def work(service, hub, rollout):
        for number in range(500):
            await hub.client.publish("$KV.presence.pi-2", b'{"n": %d}' % number)
        await hub.client.publish("$KV.presence.pi-2", b"\xff" * 10)
        await hub.client.publish("$KV.presence.pi-1", b'{"n": 7}')
        await eventually(lambda: ("pi-1", 7) in heard)
        await eventually(lambda: service.status()["unreadable_reports"])
        return len(heard)

    assert serve(work, 1) < 50
    assert heard[0] == ("pi-2", 0)
