"""From windows to a signed record on a real broker, and the frames of the device that then runs it."""

import asyncio
import contextlib

import numpy as np
import pytest
import torch
from nudging import Nudge
from waiting import eventually

from runtime_edge.base.aio import cancel_all
from runtime_edge.formats import subjects
from runtime_edge.formats.records.adaptation import Adaptation
from runtime_edge.formats.records.envelope import open_record
from runtime_edge.inference.prefix import Prefix
from runtime_server.adaptation.adaptation_loop import AdaptationLoop, AdaptConfig
from runtime_server.adaptation.adaptation_service import AdaptationService
from runtime_server.adaptation.known_adaptations import KnownAdaptations
from runtime_server.broker.pushed_heads import PushedHeads


@pytest.fixture
def serving(tmp_path, adaptable, signing_key):
    """`async with serving(hub, targets, **config) as service`; `service.known` completes frames."""

    @contextlib.asynccontextmanager
    async def run(hub, targets, **config):
        settings = AdaptConfig("tent", least_s=3600.0, **config)
        known = KnownAdaptations(tmp_path / "adaptations", adaptable)
        loop = AdaptationLoop(settings, adaptable, known, Nudge, lambda head: None)
        heads = PushedHeads(hub, signing_key)
        service = AdaptationService(hub, signing_key, heads, lambda: targets, loop, known, adaptable, settings)
        service.known = known
        running = asyncio.create_task(service.run())
        try:
            yield service
        finally:
            await cancel_all([running])

    return run


@pytest.fixture
def many():
    return torch.from_numpy(np.random.default_rng(5).standard_normal((128, 1, 1024)).astype(np.float32))


def test_a_signed_record_comes_of_enough_windows(
    play, serving, recipient, signing_key, many, adaptable, adaptable_bundle
):
    async def work(hub):
        await hub.put_head(recipient.head, signing_key, "rpi4", None)
        async with serving(hub, {"pi-1": "rpi4", "pi-2": "m2"}) as service:
            await eventually(lambda: service.status()["waits"], "the first look at the heads")
            for window in many:
                service.hear("pi-1", 1, window)
            await eventually(lambda: service.status()["sent"] == 1)
            bucket = await hub.stream.key_value(subjects.ADAPTATIONS)
            return (await bucket.get("pi-1.rpi4")).value, service.status(), service.known

    data, status, known = play(work)
    record = open_record(data, "adaptation", "pi-1.rpi4", signing_key.public, "test")
    adaptation = Adaptation.from_json(record.body, "test")
    assert record.number > 0
    adaptation.check_fits(adaptable_bundle.manifest, "onnx-fp32", "test")
    Prefix(adaptable_bundle, "onnx-fp32", adaptation=adaptation).self_test()
    assert known.may_run("pi-1", adaptation.number)
    assert known.served(adaptable.newest, adaptation.number) is not None
    assert status == {
        "method": "tent", "scope": "device", "together": [],
        "refused": 0, "withdrawn": 0, "sent": 1, "bytes": len(data),
        "windows": {"training": 96, "judging": 16, "dropped": 0, "unused": 0},
        "waits": ["pi-2: has not reported a target of this bundle yet"],
    }  # fmt: skip


def test_a_shared_one_is_for_all_devices_of_the_target(play, serving, recipient, signing_key, many):
    async def work(hub):
        await hub.put_head(recipient.head, signing_key, "rpi4", None)
        async with serving(hub, {"pi-1": "rpi4", "pi-2": "rpi4", "pi-3": ""}, scope="target") as service:
            await eventually(lambda: service.status()["waits"], "the first look at the heads")
            for place, window in enumerate(many):
                service.hear(("pi-1", "pi-2")[place % 2], 1, window)
            await eventually(lambda: service.status()["sent"] == 1)
            bucket = await hub.stream.key_value(subjects.ADAPTATIONS)
            return Adaptation.from_json(
                open_record((await bucket.get("_all.rpi4")).value, "adaptation", "_all.rpi4", None, "x").body, "x"
            ), service.known

    adaptation, known = play(work)
    assert known.may_run("pi-7", adaptation.number)


def test_devices_that_hear_alike_have_one_in_common_and_a_new_one_gets_it_at_once(
    play, serving, recipient, signing_key, many
):
    async def work(hub):
        await hub.put_head(recipient.head, signing_key, "rpi4", None)
        targets = dict.fromkeys(("pi-1", "pi-2", "pi-3"), "rpi4")
        async with serving(hub, {**targets, "pi-4": ""}, scope="alike") as service:
            await eventually(lambda: service.status()["waits"], "the first look at the heads")
            for place, window in enumerate(many[:80]):
                service.hear(("pi-1", "pi-2")[place % 2], 1, window)
            await eventually(lambda: service.groups() == {"pi-1.rpi4": ("pi-1", "pi-2"), "pi-3.rpi4": ("pi-3",)})
            for place, window in enumerate(many):
                service.hear(("pi-1", "pi-2")[place % 2], 1, window)
            await eventually(lambda: service.status()["sent"] == 2)
            for window in many[:40]:
                service.hear("pi-3", 1, window)
            await eventually(lambda: service.status()["sent"] == 3)
            bucket = await hub.stream.key_value(subjects.ADAPTATIONS)
            return [(await bucket.get(f"{device}.rpi4")).value for device in targets], service.known

    records, known = play(work, 60.0)
    found = [
        Adaptation.from_json(open_record(data, "adaptation", f"pi-{place}.rpi4", signing_key.public, "x").body, "x")
        for place, data in enumerate(records, 1)
    ]
    assert len({one.number for one in found}) == 1
    assert all(known.may_run(f"pi-{place}", found[0].number) for place in (1, 2, 3))
    assert not known.may_run("pi-4", found[0].number)


def test_without_a_head_it_says_so_and_begins_once_there_is_one(play, serving, recipient, signing_key, many, caplog):
    async def work(hub):
        async with serving(hub, {"pi-1": "rpi4"}) as service:
            await eventually(lambda: service.status()["waits"])
            waits = service.status()["waits"]
            for window in many[:10]:
                service.hear("pi-1", 1, window)
            await eventually(lambda: service.status()["windows"]["unused"] == 10)
            await hub.put_head(recipient.head, signing_key, "rpi4", None)
            await eventually(lambda: not service.status()["waits"])
            for window in many:
                service.hear("pi-1", 1, window)
            await eventually(lambda: service.status()["sent"] == 1)
            return waits

    assert play(work, 60.0) == ["rpi4: has no head; push one with `ssc server label --push`"]
    assert caplog.text.count("no adaptation: rpi4: has no head") == 1


def test_what_the_broker_does_not_take_is_sent_once_it_does(play, serving, recipient, signing_key, many, caplog):
    async def work(hub):
        await hub.put_head(recipient.head, signing_key, "rpi4", None)
        async with serving(hub, {"pi-1": "rpi4", "pi-2": ""}) as service:
            await eventually(lambda: service.status()["waits"], "the first look at the heads")
            await hub.stream.delete_stream(subjects.bucket_stream(subjects.ADAPTATIONS))
            for window in many:
                service.hear("pi-1", 1, window)
            await eventually(lambda: "adaptation for pi-1.rpi4 waits" in caplog.text)
            known = service.known.latest("pi-1.rpi4")
            await hub.create()
            await eventually(lambda: service.status()["sent"] == 1)
            return known, service.known.latest("pi-1.rpi4")

    before, after = play(work, 60.0)
    assert before is not None
    assert before == after, "kept before it was published"
