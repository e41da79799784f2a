"""The way of a window through a device, with a server that answers as a test wants it to."""

import asyncio
import threading

import numpy as np
import pytest
from small_tables import always

from runtime_edge.audio.wire_streams import AudioStreamEncoder
from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.device.capture import CapturedWindow
from runtime_edge.device.device_memory import DeviceMemory
from runtime_edge.device.pipeline import Pipeline
from runtime_edge.device.runner import WindowRunner
from runtime_edge.formats.wire import Reply
from runtime_edge.inference.engine import Engine
from runtime_edge.transport.accounting import Accounting, LoopCounts
from runtime_edge.transport.bandwidth import BandwidthEstimator
from runtime_edge.transport.frame_store import FrameStore
from runtime_edge.transport.spool.spool import Spool


class Answers:
    """A delivery whose frames are all answered at once, with one status."""

    connected, packs = True, False

    def __init__(self, status):
        self._status, self.heard_late = status, None

    def has_room(self):
        return True

    def exchange(self, message_id, window, frame, deadline_s, on_answer, hop_s):
        asyncio.get_running_loop().call_soon(on_answer, Reply(window, 2, self._status, 0), 0.01)

    def flush(self):
        """Nothing waits."""

    def report(self, message_id, window, frame, hop_s):
        """Nobody waits for an answer; one that says what is wrong comes all the same."""
        self.heard_late(Reply(window, 2, self._status, 0))


class HeldAnswers(Answers):
    """Answers when it is told to."""

    def __init__(self, status):
        super().__init__(status)
        self._loop, self._held = None, []

    def exchange(self, message_id, window, frame, deadline_s, on_answer, hop_s):
        self._loop = asyncio.get_running_loop()
        self._held.append((on_answer, Reply(window, 2, self._status, 0), 0.01))

    def release(self):
        """From any thread."""
        while self._held:
            self._loop.call_soon_threadsafe(*self._held.pop(0))


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
    def entropy(self, info, embedding, exit_cut):
        return None

    def label(self, result, info, embedding, exit_cut=None):
        return result


class Results(list):
    put = list.append


@pytest.fixture
def engine(small_bundle):
    return Engine(small_bundle, "onnx-fp32")


def run(engine, tmp_path, cut, delivery, windows=1):
    """(pipeline, results) after windows at one cut."""
    results, failures = Results(), []

    async def work():
        info = engine.bundle.manifest.info
        config = DeviceConfig(device="pi-1", state=tmp_path, broker="nats://nowhere")
        memory = DeviceMemory(info.encoder.embedding_dim)
        accounting, spool = Accounting(), Spool(tmp_path / "spool.db", 1 << 20)
        frame_store = FrameStore(spool, "pi-1.new.", accounting)
        with Worker() as worker:
            pipeline = Pipeline(
                config=config,
                worker=worker,
                updater=Updates(),
                runner=WindowRunner(
                    config,
                    "new",
                    engine,
                    always(engine.bundle, "rpi4", cut),
                    None,
                    frame_store,
                    accounting,
                    ships=True,
                    judge=memory.judge,
                    entropy=NoHead().entropy,
                ),
                memory=memory,
                learner_sync=None,
                head_updater=NoHead(),
                delivery=delivery,
                uplink=BandwidthEstimator(),
                sinks=[results],
                counts=LoopCounts(),
                window_done=failures.append,
            )
            delivery.heard_late = pipeline.late_reply
            random = np.random.default_rng(0)
            for index in range(windows):
                samples = random.uniform(-0.5, 0.5, info.front_end.window_samples).astype(np.float32)
                await worker.run(pipeline.run_window, CapturedWindow(index, 0, samples, 0.0))
            if isinstance(delivery, HeldAnswers):
                delivery.release()
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
    pipeline, results = run(engine, tmp_path, engine.cut_names[place], Answers(status))
    assert pipeline.updater.rechecks == 1
    assert pipeline.counts.refused == 1
    assert [result.finished for result in results] == ["device" if place == -1 else "fallback"]


@pytest.mark.parametrize("status", ["foreign", "refused"])
def test_it_is_said_once_that_another_server_refuses_everything_and_what_to_do(engine, tmp_path, caplog, status):
    with caplog.at_level("WARNING"):
        run(engine, tmp_path, engine.cut_names[1], Answers(status), windows=3)
    said = [record.getMessage() for record in caplog.records if "trusted.pub" in record.getMessage()]
    assert len(said) == (status == "foreign"), said


def test_a_completed_frame_ends_the_row_of_refused_ones():
    counts = LoopCounts()
    for completed in (False, False, True, False):
        counts.answered(completed)
    assert (counts.refused, counts.refused_in_a_row) == (3, 1)


def test_every_window_counts_for_the_bundle_that_ran_it(engine, tmp_path):
    pipeline, _ = run(engine, tmp_path, engine.cut_names[1], Answers("refused"), windows=3)
    assert pipeline.updater.ran == 3 * [engine.bundle]


class BusyStream(AudioStreamEncoder):
    """Hears that the server has refused window 0 while window 1 is encoded."""

    def __init__(self, front_end, hear):
        super().__init__("pcm16-stream", front_end.sample_rate, front_end.window_samples, front_end.hop_samples, 16.0)
        self.starts, self.overlapped = [], False
        self._hear, self._busy, self._restarted = hear, False, threading.Event()

    def encode(self, samples, index, alone):
        self._busy = True
        if index == 1:
            self._hear()
            self._restarted.wait(0.2)
        payload = super().encode(samples, index, alone)
        self.starts.append(payload[0] == 0)
        self._busy = False
        return payload

    def restart(self):
        self.overlapped |= self._busy
        super().restart()
        self._restarted.set()


def test_an_audio_stream_restarts_between_two_windows_and_not_during_one(small_bundle, tmp_path):
    delivery = HeldAnswers("refused")
    stream = BusyStream(small_bundle.manifest.info.front_end, delivery.release)
    engine = Engine(small_bundle, "onnx-fp32", stream=stream)
    run(engine, tmp_path, engine.cut_names[0], delivery, windows=3)
    assert not stream.overlapped
    assert stream.starts == [True, False, True]
