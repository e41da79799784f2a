"""Which bundle a device runs, and when that has proven itself."""

import asyncio

import pytest
from waiting import eventually

from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.transport.accounting import Accounting
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.trial import PROVEN_WINDOWS, Trials
from runtime_edge.updates.updater import Updater


@pytest.fixture
def state(tmp_path, small_bundle):
    """Of a device on which a bundle has been installed."""
    BundleStore(tmp_path / "state", None).install_local(small_bundle.path)
    return tmp_path / "state"


def test_only_the_windows_that_a_bundle_has_run_itself_prove_it(state, small_bundle):
    async def work():
        with Worker() as worker:
            updater = Updater(DeviceConfig(device="pi-1", state=state, trial_s=0.0), None, worker, Accounting())
            engine, _ = await updater.first()
            for _ in range(2 * PROVEN_WINDOWS):
                updater.take_updates()
            assert updater.status()["on_trial"], "asking for updates, as every table that comes does, proves nothing"
            for _ in range(2 * PROVEN_WINDOWS):
                updater.window_ran(open_bundle(small_bundle.path))
            assert updater.status()["on_trial"], "the windows of another bundle prove nothing"
            for _ in range(PROVEN_WINDOWS):
                assert updater.status()["on_trial"]
                updater.window_ran(engine.bundle)
            assert not updater.status()["on_trial"]
            await eventually(lambda: Trials(state).record().proven == engine.bundle.digest)

    asyncio.run(work())
