"""An exit's or the device's answer comes first, and the server's only where it says something else."""

import asyncio

import msgspec
import numpy as np
import pytest
from small_tables import always

from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.device.capture import CapturedWindow
from runtime_edge.device.device_memory import DeviceMemory
from runtime_edge.device.in_flight import differs
from runtime_edge.device.pipeline import Pipeline
from runtime_edge.device.runner import WindowRunner
from runtime_edge.errors import UsageError
from runtime_edge.formats.codec import ENCODINGS
from runtime_edge.formats.records.actions import ShipThresholds
from runtime_edge.formats.records.head import Head
from runtime_edge.formats.wire import Reply, decode_frame
from runtime_edge.inference.cut_assets.early_exit import LoadedExit
from runtime_edge.inference.engine import Engine
from runtime_edge.inference.prefix import Prefix
from runtime_edge.transport.accounting import Accounting, LoopCounts
from runtime_edge.transport.bandwidth import BandwidthEstimator
from runtime_edge.transport.frame_store import FrameStore
from runtime_edge.transport.spool.spool import Spool
from runtime_edge.updates.head_updater import HeadUpdater
from runtime_edge.updates.trial import Trials
from runtime_edge.updates.update_reports import UpdateReports


class Server:
    """Answers each frame at once with what a test makes of its window; None for no answer in time."""

    connected, packs = True, False

    def __init__(self, answer):
        self._answer, self.frames = answer, []

    def has_room(self):
        return True

    def exchange(self, message_id, window, frame, deadline_s, on_answer, hop_s):
        self.frames.append(frame)
        embedding = self._answer(window)
        reply = None if embedding is None else Reply(window, 2, "ok", 0, embedding.astype("<f2").tobytes())
        asyncio.get_running_loop().call_soon(on_answer, reply, 0.02)

    def flush(self):
        """Nothing waits."""

    def replay_soon(self):
        """Nothing is spooled."""


class NoUpdates:
    def take_updates(self):
        return None, None

    def window_ran(self, bundle):
        """Nothing is on trial."""


class Results(list):
    put = list.append


@pytest.fixture(scope="module")
def bundle(calibrated_bundle):
    return calibrated_bundle


@pytest.fixture(scope="module")
def action(bundle):
    """The first action of the bundle's table that an exit answers."""
    return next(action for action in bundle.table("rpi4").costs if action.answer == "exit")


@pytest.fixture(scope="module")
def windows(bundle):
    random = np.random.default_rng(0)
    samples = bundle.manifest.info.front_end.window_samples
    return [random.uniform(-0.5, 0.5, samples).astype(np.float32) for _ in range(3)]


@pytest.fixture(scope="module")
def by_exit(bundle, action, windows):
    """What the exit says of each window."""
    prefix = Prefix(bundle)
    early = LoadedExit(prefix, bundle.manifest.exit(action.cut))
    found = []
    for window in windows:
        prefix.start(window)
        prefix.advance(bundle.manifest.cut_named(action.cut).index)
        found.append(early.embedding())
    return found


def run(bundle, action, windows, server, state, ship=None, late=(), **settings):
    """(results, counts) after the windows, all by one action, and after `late` replies."""
    results, failures, counts = Results(), [], LoopCounts()

    async def work():
        info = bundle.manifest.info
        config = DeviceConfig(device="pi-1", state=state, broker="nats://nowhere", **settings)
        accounting, spool = Accounting(), Spool(state / "spool.db", 1 << 20)
        store, memory = FrameStore(spool, "pi-1.new.", accounting), DeviceMemory(info.encoder.embedding_dim)
        table = always(bundle, "rpi4", action.name, ship=ship)
        labels = HeadUpdater(config, None, UpdateReports(config, None, counts, Trials(state)), info)
        with Worker() as worker:
            engine = Engine(bundle, "onnx-fp32")
            engine.ready()
            pipeline = Pipeline(
                config=config,
                worker=worker,
                updater=NoUpdates(),
                runner=WindowRunner(
                    config, "new", engine, table, None, store, accounting, True, memory.judge, labels.entropy
                ),
                memory=memory,
                learner_sync=None,
                head_updater=labels,
                delivery=server,
                uplink=BandwidthEstimator(),
                sinks=[results],
                counts=counts,
                window_done=failures.append,
            )
            for index, window in enumerate(windows):
                await worker.run(pipeline.run_window, CapturedWindow(index, 0, window, 0.0))
            await pipeline.settle()
            for reply in late:
                pipeline.late_reply(reply)
        spool.close()
        return accounting

    accounting = asyncio.run(work())
    assert failures == [None] * len(windows)
    return results, counts, accounting


def test_the_exit_answers_alone_where_the_server_says_the_same(bundle, action, windows, by_exit, tmp_path):
    server = Server(lambda window: by_exit[window])
    results, counts, accounting = run(bundle, action, windows, server, tmp_path)

    assert [(r.window, r.answer, r.finished, r.revises) for r in results] == [(n, "exit", "exit", 0) for n in range(3)]
    assert [r.cut for r in results] == [action.cut] * 3
    assert np.allclose([r.embedding for r in results], by_exit, atol=1e-4)
    assert all(r.novelty is not None and r.network_ms == 0 for r in results)
    assert (counts.report()["finished"], counts.report()["revised"]) == ({"exit": 3}, 0)
    assert accounting.stage_ms["exit"].count == 3
    for result, frame in zip(results, server.frames, strict=True):
        ((header, _),) = decode_frame(frame)
        assert header.uncertainty == pytest.approx(result.uncertainty, abs=0.01), "the frame says this window's own"


def test_the_server_revises_an_answer_that_it_does_not_share(bundle, action, windows, by_exit, tmp_path):
    server = Server(lambda window: -by_exit[window] if window == 1 else by_exit[window])
    results, counts, _ = run(bundle, action, windows, server, tmp_path)

    (first, second) = [r for r in results if r.window == 1]
    assert (first.answer, first.revises, second.answer, second.revises) == ("exit", 0, "server", 1)
    assert np.allclose(second.embedding, -by_exit[1], atol=1e-2)
    assert second.latency_ms > first.latency_ms
    assert second.network_ms == pytest.approx(20.0)
    assert (len(results), counts.revised) == (4, 1)


def test_how_much_is_needed_for_that_is_a_setting(bundle, action, windows, by_exit, tmp_path):
    results, counts, _ = run(bundle, action, windows, Server(lambda window: -by_exit[window]), tmp_path, revise_above=2)

    assert (len(results), counts.revised) == (3, 0)


def test_without_an_answer_in_time_the_exits_stands_and_nothing_else_is_run(bundle, action, windows, tmp_path):
    results, counts, _ = run(bundle, action, windows, Server(lambda window: None), tmp_path)

    assert [r.finished for r in results] == ["exit"] * 3
    assert counts.finished == {"exit": 3}


def late(window, embedding, status="ok"):
    return Reply(window, 2, status, 5000, embedding.astype("<f2").tobytes() if status == "ok" else b"")


def test_an_answer_that_comes_late_revises_the_exits_where_it_says_something_else(
    bundle, action, windows, by_exit, tmp_path
):
    server = Server(lambda window: None if window < 2 else by_exit[window])
    replies = [
        late(0, -by_exit[0]),
        late(0, -by_exit[0]),  # of a frame that was sent again
        late(1, by_exit[1]),
        late(2, -by_exit[2]),  # was answered in time
        late(7, by_exit[0]),
        late(1, by_exit[1], "refused"),
    ]
    results, counts, _ = run(bundle, action, windows, server, tmp_path, late=replies)

    assert [(r.window, r.answer, r.revises) for r in results] == [
        (0, "exit", 0), (1, "exit", 0), (2, "exit", 0), (0, "server", 1)
    ]  # fmt: skip
    first, revised = results[0], results[-1]
    assert np.allclose(revised.embedding, -by_exit[0], atol=1e-2)
    assert (revised.cut, revised.width, revised.finished) == (first.cut, first.width, "server")
    assert (revised.uncertainty, revised.server_ms) == (first.uncertainty, 5.0)
    assert revised.latency_ms == pytest.approx(revised.device_ms + revised.network_ms + revised.server_ms, abs=0.01)
    assert (counts.revised, counts.finished) == (1, {"exit": 3})


def test_only_the_latest_windows_wait_for_a_late_answer(bundle, action, windows, by_exit, tmp_path):
    many = [windows[0]] * 70
    replies = [late(index, -by_exit[0]) for index in range(70)]
    results, counts, _ = run(bundle, action, many, Server(lambda window: None), tmp_path, late=replies)

    assert [r.window for r in results if r.revises] == list(range(6, 70))
    assert counts.revised == 64


def head_for(bundle, **changes):
    dim = bundle.manifest.info.encoder.embedding_dim
    weights = np.zeros((2, dim), np.float32)
    weights[0, 0], weights[1, 0] = 4.0, -4.0
    fields = {
        "encoder": bundle.manifest.info.encoder.id,
        "embedding_dim": dim,
        "generations": (1, 1),
        "model": None,
        "temperature": 1.0,
        "labels": ("up", "down"),
        "scores_by": "softmax",
        "thresholds": (0.5, 0.5),
        "validation": None,
        "created_by": "test",
        "bias": np.zeros(2, "<f4").tobytes(),
        "weights": weights.astype("<f4").tobytes(),
    }
    return Head(**(fields | changes))


def test_labels_of_an_exit_have_its_temperature_and_decide_what_is_revised(bundle, action, windows, by_exit, tmp_path):
    head = head_for(bundle, exit_temperatures={action.cut: 8.0})
    (tmp_path / "head.json").write_bytes(head.to_json())
    server = Server(lambda window: -by_exit[window])
    results, _, _ = run(bundle, action, windows, server, tmp_path, head=tmp_path / "head.json", revise_above=0.001)

    for index, embedding in enumerate(by_exit):
        first, second = [r for r in results if r.window == index]
        scores = dict(zip(head.labels, head.scores(embedding, action.cut).tolist(), strict=True))
        assert first.labels == pytest.approx(scores, abs=1e-3)
        scores = dict(zip(head.labels, head.scores(-embedding).tolist(), strict=True))
        assert second.labels == pytest.approx(scores, abs=1e-2)
        assert first.labels != second.labels


def test_what_counts_as_another_answer(bundle, action, windows, by_exit, tmp_path):
    (result, *_), _, _ = run(bundle, action, windows[:1], Server(lambda window: by_exit[window]), tmp_path)

    def labelled(**labels):
        return msgspec.structs.replace(result, labels=labels)

    assert not differs(labelled(rain=0.8, wind=0.2), labelled(rain=0.75, wind=0.25), 0.1)
    assert differs(labelled(rain=0.8, wind=0.2), labelled(rain=0.65, wind=0.35), 0.1)
    assert differs(labelled(rain=0.8), labelled(rain=0.8, wind=0.15), 0.1)
    assert differs(result, labelled(rain=0.8), 0.1), "there was no head for the first"
    assert not differs(result, result, 1e-6)


@pytest.mark.parametrize(("scale", "shipped"), [(400.0, 0), (0.0, 0), (2.0, 3)], ids=["sure", "hopeless", "of use"])
def test_a_table_may_keep_windows_that_the_exit_is_sure_of_or_can_make_nothing_of(
    bundle, action, windows, by_exit, tmp_path, scale, shipped
):
    weights = np.zeros((2, bundle.manifest.info.encoder.embedding_dim), np.float32)
    weights[0, 0] = scale
    (tmp_path / "head.json").write_bytes(head_for(bundle, weights=weights.astype("<f4").tobytes()).to_json())
    server = Server(lambda window: by_exit[window])
    ship = ShipThresholds(min_entropy=0.05, max_entropy=0.99, exploration=0.0)
    results, counts, accounting = run(bundle, action, windows, server, tmp_path, ship, head=tmp_path / "head.json")

    assert len(server.frames) == shipped
    assert (accounting.kept, accounting.kept_local) == (3 - shipped, 3 - shipped)
    assert [result.finished for result in results] == ["exit"] * 3
    assert [result.frame_bytes > 0 for result in results] == [bool(shipped)] * 3
    assert counts.finished == {"exit": 3}


def test_without_a_head_a_table_keeps_nothing(bundle, action, windows, by_exit, tmp_path):
    server = Server(lambda window: by_exit[window])
    _, _, accounting = run(bundle, action, windows, server, tmp_path, ShipThresholds(exploration=0.0))

    assert (len(server.frames), accounting.kept) == (3, 0)


@pytest.fixture(scope="module")
def embedded(bundle, windows):
    """What the whole encoder says of each window."""
    return [Prefix(bundle).embed(window) for window in windows]


def cascade(bundle, action, windows, server, state, scale):
    """Windows of a device that asks for help with all of which its head is unsure."""
    weights = np.zeros((2, bundle.manifest.info.encoder.embedding_dim), np.float32)
    weights[0, 0] = scale
    (state / "head.json").write_bytes(head_for(bundle, weights=weights.astype("<f4").tobytes()).to_json())
    return run(bundle, action, windows, server, state, head=state / "head.json", cascade=1.0, revise_above=0.01)


def test_in_a_cascade_the_device_answers_and_the_audio_of_what_it_is_unsure_of_is_sent(
    bundle, action, windows, embedded, tmp_path
):
    server = Server(lambda window: -embedded[window] if window == 1 else embedded[window])
    results, counts, accounting = cascade(bundle, action, windows, server, tmp_path, 2.0)

    answers = [(r.window, r.answer, r.revises) for r in results]
    assert answers == [(0, "device", 0), (1, "device", 0), (1, "server", 1), (2, "device", 0)]
    assert np.allclose([r.embedding for r in results if not r.revises], embedded, atol=1e-4)
    assert np.allclose(results[2].embedding, -embedded[1], atol=1e-2)
    for frame, window in zip(server.frames, windows, strict=True):
        ((header, payload),) = decode_frame(frame)
        assert (header.cut, ENCODINGS[header.encoding]) == (0, "pcm16")
        assert np.allclose(np.frombuffer(payload, "<i2") / 32767, window, atol=1e-4)
    assert (accounting.kept, counts.revised) == (0, 1)
    assert accounting.stage_ms["prefix"].count == 3
    assert accounting.stage_ms["exit"].count == 0


def test_in_a_cascade_what_the_head_is_sure_of_stays_and_is_local(bundle, action, windows, embedded, tmp_path):
    server = Server(lambda window: embedded[window])
    results, counts, accounting = cascade(bundle, action, windows, server, tmp_path, 4000.0)

    assert (server.frames, accounting.kept) == ([], 3)
    assert [(r.answer, r.cut, r.frame_bytes) for r in results] == [("device", "local", 0)] * 3
    assert counts.finished == {"device": 3}


def test_in_a_cascade_without_a_head_windows_unlike_those_before_are_sent(bundle, action, windows, embedded, tmp_path):
    server = Server(lambda window: embedded[window])
    results, _, _ = run(bundle, action, windows, server, tmp_path, cascade=1.0, revise_above=2.0)
    assert (len(server.frames), [r.answer for r in results]) == (3, ["device"] * 3)


def test_a_privacy_floor_forbids_a_cascade(bundle, action, windows, tmp_path):
    with pytest.raises(UsageError, match="cascade: sends audio, which the privacy floor"):
        run(bundle, action, windows, Server(lambda window: None), tmp_path, cascade=0.2, min_cut=action.cut)
