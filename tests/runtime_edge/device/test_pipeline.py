"""The way of a window through a device, with a server that answers as a test wants it to."""

import asyncio

import numpy as np
import pytest
from msgspec.structs import replace

from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.device.capture import CapturedWindow
from runtime_edge.device.device_memory import DeviceMemory
from runtime_edge.device.pipeline import Pipeline
from runtime_edge.formats.records.table import StateAxis
from runtime_edge.formats.wire import Reply
from runtime_edge.inference.engine import Engine
from runtime_edge.policy.splitter import Splitter
from runtime_edge.transport.accounting import Accounting
from runtime_edge.transport.bandwidth import BandwidthEstimator
from runtime_edge.transport.frame_store import FrameStore
from runtime_edge.transport.spool import Spool


class Answers:
    """A delivery whose frames are all answered at once, with one status."""

    connected = True

    def __init__(self, status):
        self._status = status

    def has_room(self):
        return True

    def exchange(self, message_id, window, frame, deadline_s, on_answer):
        asyncio.get_running_loop().call_soon(on_answer, Reply(window, 2, self._status, 0), 0.01)


class Updates:
    """An updater that has none; notes the windows that ran, and how often it was sent to look for a release."""

    def __init__(self):
        self.ran, self.rechecks = [], 0

    def take_updates(self):
        return None, None

    def window_ran(self, bundle):
        self.ran.append(bundle)

    async def recheck(self):
        self.rechecks += 1


class NoHead:
    def label(self, result, info, embedding):
        return result


class Results(list):
    put = list.append


@pytest.fixture
def engine(small_bundle):
    return Engine(small_bundle, "onnx-fp32")


def always(bundle, cut):
    """A table that takes one cut in every state."""
    table = bundle.table("rpi4")
    best = table.actions.index(cut)
    row = tuple(float(action == best) for action in range(len(table.actions)))
    return replace(
        table,
        state=(StateAxis(name="bandwidth_mbps", edges=()),),
        q=(row,),
        policy=(best,),
        hysteresis=0.0,
        probe_rate=0.0,
    )


def run(engine, tmp_path, cut, status, windows=1):
    """(pipeline, results) after windows at one cut, each answered with one status."""
    results, failures = Results(), []

    async def work():
        info = engine.bundle.manifest.info
        config = DeviceConfig(device="pi-1", state=tmp_path, broker="nats://nowhere")
        accounting, spool = Accounting(), Spool(tmp_path / "spool.db", 1 << 20)
        with Worker() as worker:
            pipeline = Pipeline(
                config=config,
                boot="new",
                accounting=accounting,
                worker=worker,
                updater=Updates(),
                engine=engine,
                splitter=Splitter(always(engine.bundle, cut), engine.cut_names),
                memory=DeviceMemory(info.encoder.embedding_dim),
                learner_sync=None,
                head_updater=NoHead(),
                frame_store=FrameStore(spool, "pi-1.new.", accounting),
                delivery=Answers(status),
                uplink=BandwidthEstimator(),
                sinks=[results],
                window_done=failures.append,
            )
            random = np.random.default_rng(0)
            for index in range(windows):
                samples = random.uniform(-0.5, 0.5, info.front_end.window_samples).astype(np.float32)
                await asyncio.to_thread(pipeline.run_window, CapturedWindow(index, 0, samples, 0.0))
            await pipeline.settle()
        spool.close()
        return pipeline

    pipeline = asyncio.run(work())
    assert failures == [None] * windows
    return pipeline, results


@pytest.mark.parametrize("place", [0, 1, -1], ids=["waveform", "middle", "embedding"])
@pytest.mark.parametrize("status", ["retired", "foreign"])
def test_at_every_cut_a_device_whose_generation_is_not_served_looks_for_a_release(engine, tmp_path, place, status):
    """At the last cut it needs no embedding from the server, but must hear that it is behind all the same."""
    pipeline, results = run(engine, tmp_path, engine.cut_names[place], status)
    assert pipeline.updater.rechecks == 1
    assert pipeline.accounting.refused == 1
    assert [result.finished for result in results] == ["device" if place == -1 else "fallback"]


def test_every_window_counts_for_the_bundle_that_ran_it(engine, tmp_path):
    pipeline, _ = run(engine, tmp_path, engine.cut_names[1], "refused", windows=3)
    assert pipeline.updater.ran == 3 * [engine.bundle]
