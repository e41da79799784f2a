"""A whole device with a broker and a server in memory."""

import asyncio
import contextlib
import wave

import numpy as np
import pytest
from publishing import publish
from small_tables import always
from waiting import eventually

from runtime_edge.config import DeviceConfig
from runtime_edge.device.device import Device
from runtime_edge.device.sinks import CallbackSink, JsonLines
from runtime_edge.errors import LinkError
from runtime_edge.formats import subjects
from runtime_edge.formats.records.envelope import seal
from runtime_edge.formats.results import decode_result, decode_result_event
from runtime_edge.formats.wire import Reply, decode_frame
from runtime_edge.sd_notify import Notifier
from runtime_edge.service.status import read_status
from runtime_edge.transport.in_memory import InMemoryTransport
from runtime_edge.updates.bundle_store import BundleStore

WINDOWS = 12


@pytest.fixture
def config(tmp_path, small_bundle):
    """Of a device on which the bundle has been installed, and some audio."""
    BundleStore(tmp_path / "state", None).install_local(small_bundle.path)
    front_end, path = small_bundle.manifest.info.front_end, tmp_path / "audio.wav"
    samples = front_end.window_samples + (WINDOWS - 1) * front_end.hop_samples
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, samples)
    write_wav(path, audio, front_end.sample_rate)
    return DeviceConfig(
        device="pi-1", source=str(path), state=tmp_path / "state", target="rpi4", broker="memory:", variant="onnx-fp32",
        realtime=False, deadline_ms=60_000,
    )  # fmt: skip


class Server:
    """Completes frames of the newest generation and calls others retired: that is released, but nobody was told."""

    def __init__(self, bundle):
        self.transport = InMemoryTransport(self.answer)
        self.newest, self._dim = bundle, bundle.manifest.info.encoder.embedding_dim

    def take(self, table):
        key = subjects.table_key("rpi4")
        self.transport.values[subjects.TABLES, key] = seal("table", key, 1, table.to_json(), None)

    def answer(self, window, frame):
        header, _ = decode_frame(frame)[0]  # those that go together are of one generation
        generation = self.newest.manifest.info.generation
        if header.generation != generation:
            publish(self.transport, self.newest)
            return Reply(window, generation, "retired", 0)
        return Reply(window, generation, "ok", 5, np.full(self._dim, self._dim**-0.5, "<f2").tobytes())

    @property
    def windows(self):
        """In the frames that were stored, several in one where they went together."""
        return sum(len(decode_frame(frame)) for frame in self.transport.frames.values())

    @contextlib.asynccontextmanager
    async def connect(self, config):
        yield self.transport


def write_wav(path, audio, rate):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.rint(audio * 32767).astype("<i2").tobytes())


def run(config, server, until=lambda result: False):
    """(report, results) of a run that ends with its source, or after a result."""
    results = []

    async def work():
        device = Device(config, [CallbackSink(lambda result: take(device, result))], connect=server.connect)
        return await device.run()

    def take(device, result):
        results.append(result)
        if until(result):
            device.stop()

    return asyncio.run(work()), results


def test_every_window_is_stored_once_and_finished_by_the_server(config, small_bundle):
    server = Server(small_bundle)
    server.take(always(small_bundle, "rpi4", small_bundle.manifest.info.cuts[1].name))
    report, results = run(config, server)
    assert report["windows_captured"] == report["windows_acked"] == server.windows == WINDOWS
    assert report["windows_lost"] == report["windows_refused"] == 0
    assert report["finished"] == {"server": WINDOWS}
    assert sorted(result.window for result in results) == list(range(WINDOWS))
    assert (subjects.PRESENCE, "pi-1") in server.transport.values
    status = read_status(config.state)
    assert status.ended == "its source has ended"
    assert set(status.stage_ms) >= {"wait", "prefix", "encode", "spool", "publish", "reply"}


def test_results_and_events_say_where_in_which_recording_a_window_begins(config, small_bundle, tmp_path):
    front_end, recordings = small_bundle.manifest.info.front_end, tmp_path / "recordings"
    hop_s, hops = front_end.hop_samples / front_end.sample_rate, {"a.wav": 5, "b.wav": 4}
    recordings.mkdir()
    for (name, count), rate in zip(hops.items(), (front_end.sample_rate, 44_100), strict=True):
        write_wav(recordings / name, np.full(round((count + 0.5) * hop_s * rate), 0.25), rate)
    server, path = Server(small_bundle), tmp_path / "results.jsonl"
    config = DeviceConfig(**{**vars(config), "source": str(recordings), "events": "all"})
    asyncio.run(Device(config, [JsonLines(str(path))], connect=server.connect).run())
    results = sorted(map(decode_result, path.read_bytes().splitlines()), key=lambda result: result.window)
    published = [body for subject, body in server.transport.published if subject == subjects.events("pi-1")]
    events = [decode_result_event(body) for body in published if b'"result"' in body]
    windows = front_end.window_samples // front_end.hop_samples
    expected = [(name, at * hop_s) for name, count in hops.items() for at in range(count - windows + 1)]
    assert [result.file for result in results] == [str(recordings / name) for name, _ in expected]
    assert [result.offset_s for result in results] == pytest.approx([start for _, start in expected], abs=1e-4)
    assert {(event.window, event.file, event.offset_s) for event in events} == {
        (result.window, name, result.offset_s) for result, (name, _) in zip(results, expected, strict=True)
    }


def test_without_a_connection_the_device_finishes_every_window_and_the_next_run_sends_them(config, small_bundle):
    server = Server(small_bundle)
    server.take(always(small_bundle, "rpi4", small_bundle.manifest.info.cuts[1].name))
    server.transport.disconnect()
    report, results = run(DeviceConfig(**{**vars(config), "drain_s": 0.0}), server)
    assert {result.finished for result in results} == {"device"}
    assert report["windows_spooled"] == report["windows_captured"] == WINDOWS
    assert report["windows_lost"] == 0
    server.transport.reconnect()
    report, _ = run(config, server)
    assert (report["windows_inherited"], report["windows_replayed"]) == (0, WINDOWS)
    assert server.windows == 2 * WINDOWS


def test_a_device_at_the_last_cut_whose_generation_is_retired_runs_the_next_one(config, small_bundle, second_bundle):
    server = Server(second_bundle)
    server.take(always(small_bundle, "rpi4", small_bundle.manifest.info.cuts[-1].name))
    looping = DeviceConfig(**{**vars(config), "loop": True})
    report, _ = run(looping, server, until=lambda result: result.generation == 2)
    assert (report["generation_start"], report["generation_end"]) == (1, 2)
    assert report["bundle"] == second_bundle.digest


def test_a_device_whose_audio_falls_silent_takes_a_release_and_a_table_says_how_it_is_and_ends_when_told(
    config, small_bundle, second_bundle, standard_input
):
    """The pipe stays open: the worker waits for it, and does what it is asked for meanwhile."""
    server, key = Server(small_bundle), subjects.table_key("rpi4")
    server.take(always(small_bundle, "rpi4", small_bundle.manifest.info.cuts[1].name))
    standard_input.write(bytes(2 * small_bundle.manifest.info.front_end.window_samples))
    piped, results = DeviceConfig(**{**vars(config), "source": "-"}), []
    often = Notifier({"WATCHDOG_USEC": "100000"})  # a status every 33 ms

    async def work():
        device = Device(piped, [CallbackSink(results.append)], often, connect=server.connect)
        running = asyncio.create_task(device.run())
        await eventually(lambda: len(results) == 1)
        publish(server.transport, second_bundle)
        release = server.transport.values[subjects.RELEASES, "rpi4"]
        await server.transport.change(subjects.RELEASES, "rpi4", release)
        table = always(second_bundle, "rpi4", second_bundle.manifest.info.cuts[2].name)
        await server.transport.change(subjects.TABLES, key, seal("table", key, 2, table.to_json(), None))
        await eventually(lambda: read_status(config.state).encoder.generation == 2)
        await eventually(lambda: read_status(config.state).report["table_swaps"] == 1)
        assert not running.done()
        device.stop()
        return await running

    report = asyncio.run(work())
    assert (report["generation_start"], report["generation_end"]) == (1, 2)
    assert report["windows_captured"] == report["windows_acked"] == len(results) == 1


def test_a_device_that_cannot_start_closes_what_it_has_opened(config, tmp_path):
    closed = []

    class Sink(CallbackSink):
        def close(self):
            closed.append("sink")

    @contextlib.asynccontextmanager
    async def connect(config):
        transport = InMemoryTransport()
        transport.disconnect()
        try:
            yield transport
        finally:
            closed.append("connection")

    empty = DeviceConfig(**{**vars(config), "state": tmp_path / "empty"})
    with pytest.raises(LinkError, match="no bundle on this device yet"):
        asyncio.run(Device(empty, [Sink(print)], connect=connect).run())
    assert closed == ["connection", "sink"]
