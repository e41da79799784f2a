import asyncio
import threading
import wave

import numpy as np
import pytest
from waiting import eventually, until

from runtime_edge.config import DeviceConfig
from runtime_edge.device.capture import Capture
from runtime_edge.errors import BackendError, SourceError

RATE, WINDOW, HOP = 8000, 800, 400


def write_wav(path, samples):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture
def sound(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, RATE).astype(np.float32)
    return write_wav(tmp_path / "sound.wav", samples), samples


def capture(source, tmp_path, **options):
    options = {"realtime": False, **options}
    config = DeviceConfig(device="test", source=str(source), state=tmp_path, target="rpi4", **options)
    return Capture(config, RATE, WINDOW, HOP)


async def collect(capturing, stopping=None, limit=None, delay_s=0.0):
    """Every window, gone through in the loop `delay_s` after it was taken."""
    windows, loop = [], asyncio.get_running_loop()

    def take(window):
        windows.append(window)
        loop.call_soon_threadsafe(loop.call_later, delay_s, capturing.window_done)

    await capturing.read(take, stopping or asyncio.Event(), limit)
    return windows


def test_a_window_says_in_which_file_it_begins_and_where(sound, tmp_path):
    (tmp_path / "sounds").mkdir()
    for name in ("a.wav", "b.wav"):
        write_wav(tmp_path / "sounds" / name, sound[1])
    windows = asyncio.run(collect(capture(tmp_path / "sounds", tmp_path, realtime=True, speed=1000.0)))
    places = [(str(tmp_path / "sounds" / name), at * HOP / RATE) for name in ("a.wav", "b.wav") for at in range(19)]
    assert [(window.file, window.offset_s) for window in windows] == places


def test_a_window_says_when_it_was_recorded(sound, tmp_path):
    named = sound[0].rename(tmp_path / "garden_20260501_043000.wav")
    windows = asyncio.run(collect(capture(named, tmp_path), limit=3))
    assert [window.recorded_at for window in windows] == [
        "2026-05-01T04:30:00", "2026-05-01T04:30:00.050000", "2026-05-01T04:30:00.100000"
    ]  # fmt: skip


@pytest.fixture
def thread_ends():
    """Wait until the threads that a test has started are gone."""
    before = set(threading.enumerate())

    def wait():
        until(lambda: set(threading.enumerate()) <= before, what="the capture thread ends")

    return wait


def test_every_window_of_a_file_arrives_in_order(sound, tmp_path, thread_ends):
    path, samples = sound
    capturing = capture(path, tmp_path)
    windows = asyncio.run(collect(capturing))
    assert [window.index for window in windows] == list(range((RATE - WINDOW) // HOP + 1))
    for window in windows:
        expected = samples[window.index * HOP : window.index * HOP + WINDOW]
        np.testing.assert_allclose(window.samples, expected, atol=1e-4)
    assert capturing.counters.windows == len(windows)
    times = np.diff([window.capture_time_ns for window in windows])
    assert (np.abs(times - HOP / RATE * 1e9) <= 1).all()
    thread_ends()


def test_samples_are_a_copy_of_the_windows_own(sound, tmp_path):
    windows = asyncio.run(collect(capture(sound[0], tmp_path)))
    kept = windows[0].samples.copy()
    windows[1].samples[:] = 0
    assert np.array_equal(windows[0].samples, kept)
    assert not np.shares_memory(windows[0].samples, windows[1].samples)


def test_a_slow_reader_loses_nothing_of_a_file(sound, tmp_path):
    windows = asyncio.run(collect(capture(sound[0], tmp_path), delay_s=0.01))
    assert [window.index for window in windows] == list(range(19))


@pytest.mark.parametrize("options", [{}, {"realtime": True, "speed": 1000.0}])
def test_the_next_window_comes_when_the_last_one_has_gone_through(sound, tmp_path, options):
    async def run():
        capturing, taken, stopping = capture(sound[0], tmp_path, **options), [], asyncio.Event()
        reading = asyncio.create_task(capturing.read(taken.append, stopping))
        counts = []
        for count in (1, 2, 3):
            await eventually(lambda count=count: len(taken) >= count)
            await asyncio.sleep(0.1)  # for one that comes too early
            counts.append(len(taken))
            capturing.window_done()
        stopping.set()
        await reading
        return counts

    assert asyncio.run(run()) == [1, 2, 3]


def test_it_has_not_read_to_the_end_before_the_last_window_has_gone_through(sound, tmp_path):
    async def run():
        capturing, taken = capture(sound[0], tmp_path, realtime=True, speed=1000.0), []
        reading = asyncio.create_task(capturing.read(taken.append, asyncio.Event(), limit=2))
        await eventually(lambda: len(taken) == 1)
        capturing.window_done()
        await eventually(lambda: len(taken) == 2)
        await asyncio.sleep(0.1)
        early = reading.done()
        capturing.window_done()
        await asyncio.wait_for(reading, 5)
        return early, len(taken)

    assert asyncio.run(run()) == (False, 2)


def test_what_a_window_ends_with_ends_the_reading(sound, tmp_path, thread_ends):
    async def run():
        capturing = capture(sound[0], tmp_path, loop=True)
        loop = asyncio.get_running_loop()
        error = BackendError("the runtime fails")
        await asyncio.wait_for(
            capturing.read(lambda window: loop.call_soon_threadsafe(capturing.window_done, error), asyncio.Event()), 5
        )

    with pytest.raises(BackendError, match="the runtime fails"):
        asyncio.run(run())
    thread_ends()


def test_stopping_ends_an_endless_source(sound, tmp_path, thread_ends):
    async def run():
        stopping = asyncio.Event()
        asyncio.get_running_loop().call_later(0.2, stopping.set)
        return await asyncio.wait_for(collect(capture(sound[0], tmp_path, loop=True), stopping), 5)

    assert len(asyncio.run(run())) > 19
    thread_ends()


def test_stopping_does_not_wait_for_the_next_window(sound, tmp_path):
    async def run():
        stopping = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, stopping.set)
        return await asyncio.wait_for(collect(capture(sound[0], tmp_path, realtime=True, speed=0.001), stopping), 5)

    assert asyncio.run(run()) == []


def test_a_reader_that_leaves_early_ends_the_thread(sound, tmp_path, thread_ends):
    assert len(asyncio.run(collect(capture(sound[0], tmp_path, loop=True), limit=3))) == 3
    thread_ends()


def test_a_source_that_is_not_there_is_refused_at_once(tmp_path):
    with pytest.raises(SourceError, match=r"missing\.wav"):
        capture(tmp_path / "missing.wav", tmp_path)


def test_a_source_that_cannot_be_read_is_reported_to_the_reader(tmp_path, thread_ends):
    path = tmp_path / "text.wav"
    path.write_text("this is no audio")
    with pytest.raises(SourceError, match=r"text\.wav"):
        asyncio.run(collect(capture(path, tmp_path)))
    thread_ends()


def test_quiet_windows_are_gated_and_counted(tmp_path):
    samples = np.zeros(RATE, np.float32)
    samples[RATE // 2 :: 2] = 0.5
    capturing = capture(write_wav(tmp_path / "half.wav", samples), tmp_path, gate_db=-40.0)
    windows = asyncio.run(collect(capturing))
    assert capturing.counters.gated > 5
    assert len(windows) + capturing.counters.gated == 19
    assert windows[0].index == 19 - len(windows)
