"""What a device has learnt is on its disk and at the server, and comes back."""

import asyncio

from small_tables import make_table

from runtime_edge.config import DeviceConfig
from runtime_edge.formats import subjects
from runtime_edge.formats.records.learnt import Learnt
from runtime_edge.policy.reward import Conditions
from runtime_edge.transport.in_memory import InMemoryTransport
from runtime_edge.updates.learner_sync import LearnerSync

TABLE = make_table(((0.0,) * 5,) * 2)
AT = Conditions(uncertainty=0.5, cpu=0.0, bandwidth_mbps=8.0, rtt_ms=50.0)
LEARNT = subjects.LEARNT, "pi-1"


def sync(state, transport=None, learn=True):
    return LearnerSync(DeviceConfig(device="pi-1", state=state, learn=learn), transport)


def teach(learner, first=0):
    for window in range(first, first + 5):
        learner.decided(window, 0, 1, AT)
        learner.finished(window, 0.5, 500.0, 500.0)


def test_what_is_new_is_shared_once_and_read_by_the_next_run(tmp_path):
    transport = InMemoryTransport()
    synced = sync(tmp_path, transport)
    learner = synced.learner_for(TABLE)
    teach(learner)
    asyncio.run(synced.share())
    shared = Learnt.from_json(transport.values.pop(LEARNT), "shared")
    assert shared == learner.record()
    asyncio.run(synced.share())
    assert transport.values == {}, "nothing is new"
    assert sync(tmp_path).learner_for(TABLE).record().cells == shared.cells


def test_while_the_link_is_down_it_is_kept(tmp_path):
    transport = InMemoryTransport()
    transport.disconnect()
    synced = sync(tmp_path, transport)
    teach(synced.learner_for(TABLE))
    asyncio.run(synced.share())
    assert transport.values == {}
    assert sync(tmp_path).learner_for(TABLE).record().cells


def test_another_table_starts_with_nothing_learnt(tmp_path):
    synced = sync(tmp_path)
    teach(synced.learner_for(TABLE))
    other = make_table(((1.0,) * 5,) * 2)
    assert synced.learner_for(other).record().cells == []


def test_a_damaged_file_costs_what_it_held(tmp_path):
    (tmp_path / "learnt.json").write_text("{")
    assert sync(tmp_path).learner_for(TABLE).record().cells == []


def test_without_learning_there_is_no_learner(tmp_path):
    synced = sync(tmp_path, learn=False)
    assert synced.learner_for(TABLE) is None
    asyncio.run(synced.share())
    assert not (tmp_path / "learnt.json").exists()
