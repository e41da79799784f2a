"""Which head labels a device's results."""

import asyncio

import numpy as np
import pytest
from msgspec.structs import replace

from runtime_edge.config import DeviceConfig
from runtime_edge.errors import HeadError
from runtime_edge.formats import subjects
from runtime_edge.formats.records.envelope import seal
from runtime_edge.formats.records.head import Head
from runtime_edge.formats.results import WindowResult
from runtime_edge.transport.accounting import LoopCounts
from runtime_edge.transport.in_memory import InMemoryTransport
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.head_updater import HeadUpdater
from runtime_edge.updates.update_reports import UpdateReports

KEY = subjects.table_key("rpi4")
RESULT = WindowResult(
    window=7, time=1.5, embedding=[], uncertainty=0.25, cut="down", encoding="int8", probe=False, generation=1,
    finished="server", latency_ms=12.5, device_ms=3.0, network_ms=8.5, server_ms=1.0, frame_bytes=321,
    bandwidth_mbps=5.0, rtt_ms=8.0, cpu=0.5,
)  # fmt: skip


@pytest.fixture
def info(small_bundle):
    return small_bundle.manifest.info


def constant(info, label, **changes):
    """A head that gives every window one label."""
    width = info.encoder.embedding_dim
    head = Head(
        encoder=info.encoder.id, embedding_dim=width, generations=(1, 1), labels=(label, "else"), scores_by="softmax",
        thresholds=(0.5, 0.5), validation=None, created_by="test", bias=np.array([9, 0], "<f4").tobytes(),
        weights=bytes(4 * 2 * width), model=None, temperature=1.0,
    )  # fmt: skip
    return replace(head, **changes)


def record(head):
    return seal("head", KEY, 1, head.to_json(), None)


def updater(state, transport, info, counts=None, **settings):
    config = DeviceConfig(device="pi-1", state=state, target="rpi4", **settings)
    reports = UpdateReports(config, transport, counts or LoopCounts(), BundleStore(state, None).trials)
    return HeadUpdater(config, transport, reports, info)


def detected(updating, info):
    embedding = np.zeros(info.encoder.embedding_dim, np.float32)
    return updating.label(RESULT, info, embedding).detected


def test_heads_swap_as_they_come_and_the_last_is_used_by_the_next_run(tmp_path, info):
    transport = InMemoryTransport()
    transport.values[subjects.HEADS, KEY] = record(constant(info, "first"))

    async def work():
        updating = updater(tmp_path, transport, info)
        assert detected(updating, info) is None
        await updating.follow()
        said = [detected(updating, info)]
        await transport.change(subjects.HEADS, KEY, record(constant(info, "second")))
        return [*said, detected(updating, info)]

    assert asyncio.run(work()) == [["first"], ["second"]]
    assert detected(updater(tmp_path, None, info), info) == ["second"]


def test_a_head_of_a_later_generation_takes_over_with_its_blocks_and_goes_with_them(tmp_path, info):
    transport = InMemoryTransport()

    async def work():
        updating = updater(tmp_path, transport, info)
        await updating.follow()
        await transport.change(subjects.HEADS, KEY, record(constant(info, "early", generations=(3, 3))))
        said = [detected(updating, info)]  # any head is better than none
        await transport.change(subjects.HEADS, KEY, record(constant(info, "usual")))
        said.append(detected(updating, info))
        await transport.change(subjects.HEADS, KEY, record(constant(info, "next", generations=(2, 2))))
        said.append(detected(updating, info))
        restarted = detected(updater(tmp_path, None, info), info)
        later = replace(info, generation=2)
        return [*said, restarted, detected(updating, later), detected(updating, info)]

    found = asyncio.run(work())
    assert found == [["early"], ["usual"], ["usual"], ["usual"], ["next"], ["usual"]]
    assert detected(updater(tmp_path, None, info), info) == ["next"], "it was used last"


def test_results_leave_the_background_out_and_say_what_is_unknown(tmp_path, info):
    head = constant(info, "background", background="background", min_energy=9.5)
    (tmp_path / "head.json").write_bytes(head.to_json())
    updating = updater(tmp_path, None, info, head=tmp_path / "head.json")
    result = updating.label(RESULT, info, np.zeros(info.encoder.embedding_dim, np.float32))
    assert (list(result.labels), result.detected, result.unknown) == (["else"], [], True)


def test_a_head_of_another_encoder_is_refused_and_labels_nothing(tmp_path, info):
    transport, counts = InMemoryTransport(), LoopCounts()

    async def work():
        updating = updater(tmp_path, transport, info, counts)
        await updating.follow()
        for sent in (b"{", record(constant(info, "foreign", encoder="resnet18"))):
            await transport.change(subjects.HEADS, KEY, sent)
        return detected(updating, info)

    assert asyncio.run(work()) is None
    assert sum(counts.errors.values()) == 2
    assert not (tmp_path / "head.json").exists()


def test_a_head_that_was_given_stays(tmp_path, info):
    transport = InMemoryTransport()
    given = tmp_path / "given.json"
    given.write_bytes(constant(info, "given").to_json())

    async def work():
        updating = updater(tmp_path, transport, info, head=given)
        await updating.follow()
        await transport.change(subjects.HEADS, KEY, record(constant(info, "other")))
        return detected(updating, info)

    assert asyncio.run(work()) == ["given"]
    given.write_bytes(constant(info, "given", encoder="resnet18").to_json())
    with pytest.raises(HeadError):
        updater(tmp_path, transport, info, head=given)
