import array
import asyncio
import fcntl
import termios
import wave

import numpy as np
import pytest
from waiting import eventually

from runtime_edge.base.worker import Worker
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


def capture(source, tmp_path, worker, **options):
    options = {"realtime": False, **options}
    config = DeviceConfig(device="test", source=str(source), state=tmp_path, target="rpi4", **options)
    return Capture(config, RATE, WINDOW, HOP, worker)


async def collect(source, tmp_path, stopping=None, limit=None, delay_s=0.0, **options):
    """(windows, state) of a capture; every window is done in the loop `delay_s` after it was taken."""
    windows, loop = [], asyncio.get_running_loop()

    def take(window):
        windows.append(window)
        loop.call_soon_threadsafe(loop.call_later, delay_s, capturing.window_done)

    with Worker() as worker:
        capturing = capture(source, tmp_path, worker, **options)
        await capturing.read(take, stopping or asyncio.Event(), limit)
        return windows, await worker.run(capturing.state)


def test_a_window_says_in_which_file_it_begins_and_where(sound, tmp_path):
    (tmp_path / "sounds").mkdir()
    for name in ("a.wav", "b.wav"):
        write_wav(tmp_path / "sounds" / name, sound[1])
    windows, _ = asyncio.run(collect(tmp_path / "sounds", tmp_path, realtime=True, speed=1000.0))
    places = [(str(tmp_path / "sounds" / name), at * HOP / RATE) for name in ("a.wav", "b.wav") for at in range(19)]
    assert [(window.file, window.offset_s) for window in windows] == places


def test_a_window_says_when_it_was_recorded(sound, tmp_path):
    named = sound[0].rename(tmp_path / "garden_20260501_043000.wav")
    windows, _ = asyncio.run(collect(named, tmp_path, limit=3))
    assert [window.recorded_at for window in windows] == [
        "2026-05-01T04:30:00", "2026-05-01T04:30:00.050000", "2026-05-01T04:30:00.100000"
    ]  # fmt: skip


def test_every_window_of_a_file_arrives_in_order(sound, tmp_path):
    path, samples = sound
    windows, state = asyncio.run(collect(path, tmp_path))
    assert [window.index for window in windows] == list(range((RATE - WINDOW) // HOP + 1))
    for window in windows:
        expected = samples[window.index * HOP : window.index * HOP + WINDOW]
        np.testing.assert_allclose(window.samples, expected, atol=1e-4)
    assert state.counters.windows == len(windows)
    assert state.silent_s == 0.0
    times = np.diff([window.capture_time_ns for window in windows])
    assert (np.abs(times - HOP / RATE * 1e9) <= 1).all()


def test_samples_are_a_copy_of_the_windows_own(sound, tmp_path):
    windows, _ = asyncio.run(collect(sound[0], tmp_path))
    kept = windows[0].samples.copy()
    windows[1].samples[:] = 0
    assert np.array_equal(windows[0].samples, kept)
    assert not np.shares_memory(windows[0].samples, windows[1].samples)


def test_a_slow_reader_loses_nothing_of_a_file(sound, tmp_path):
    windows, _ = asyncio.run(collect(sound[0], tmp_path, delay_s=0.01))
    assert [window.index for window in windows] == list(range(19))


async def rounds(worker):
    """A worker that waits answers all of these; one that went on reading would have passed on windows between them."""
    for number in range(50):
        await worker.run(str, number)


@pytest.mark.parametrize("options", [{}, {"realtime": True, "speed": 1000.0}])
def test_the_next_window_comes_when_the_last_one_has_gone_through(sound, tmp_path, options):
    async def run():
        taken, stopping, counts = [], asyncio.Event(), []
        with Worker() as worker:
            capturing = capture(sound[0], tmp_path, worker, **options)
            reading = asyncio.create_task(capturing.read(taken.append, stopping))
            for count in (1, 2, 3):
                await eventually(lambda count=count: len(taken) >= count)
                await rounds(worker)
                counts.append(len(taken))
                capturing.window_done()
            stopping.set()
            await reading
        return counts

    assert asyncio.run(run()) == [1, 2, 3]


def test_it_has_not_read_to_the_end_before_the_last_window_has_gone_through(sound, tmp_path):
    async def run():
        taken = []
        with Worker() as worker:
            capturing = capture(sound[0], tmp_path, worker, realtime=True, speed=1000.0)
            reading = asyncio.create_task(capturing.read(taken.append, asyncio.Event(), limit=2))
            await eventually(lambda: len(taken) == 1)
            capturing.window_done()
            await eventually(lambda: len(taken) == 2)
            await rounds(worker)
            early = reading.done()
            capturing.window_done()
            await reading
        return early, len(taken)

    assert asyncio.run(run()) == (False, 2)


def test_what_a_window_ends_with_ends_the_reading(sound, tmp_path):
    async def run():
        loop, error = asyncio.get_running_loop(), BackendError("the runtime fails")
        with Worker() as worker:
            capturing = capture(sound[0], tmp_path, worker, loop=True)
            await capturing.read(
                lambda window: loop.call_soon_threadsafe(capturing.window_done, error), asyncio.Event()
            )

    with pytest.raises(BackendError, match="the runtime fails"):
        asyncio.run(run())


def test_what_running_a_window_raises_ends_the_reading(sound, tmp_path):
    def fail(window):
        raise BackendError(f"window {window.index} fails")

    async def run():
        with Worker() as worker:
            await capture(sound[0], tmp_path, worker, loop=True).read(fail, asyncio.Event())

    with pytest.raises(BackendError, match="window 0 fails"):
        asyncio.run(run())


def test_stopping_ends_an_endless_source(sound, tmp_path):
    taken = []

    async def run():
        stopping, loop = asyncio.Event(), asyncio.get_running_loop()

        def done():
            if len(taken) > 19:
                stopping.set()
            capturing.window_done()

        def take(window):
            taken.append(window)
            loop.call_soon_threadsafe(done)

        with Worker() as worker:
            capturing = capture(sound[0], tmp_path, worker, loop=True)
            await capturing.read(take, stopping)

    asyncio.run(run())
    assert len(taken) > 19


def test_stopping_does_not_wait_for_the_next_window(sound, tmp_path):
    async def run():
        stopping = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, stopping.set)
        return await collect(sound[0], tmp_path, stopping, realtime=True, speed=0.00001)

    assert asyncio.run(run())[0] == []


def test_a_reader_that_leaves_early_ends_the_reading(sound, tmp_path):
    windows, _ = asyncio.run(collect(sound[0], tmp_path, limit=3, loop=True))
    assert len(windows) == 3


def test_a_cancelled_reading_has_ended_when_it_is_over(sound, tmp_path):
    """Nothing is read afterwards: the worker is free for what closes the device."""
    done = []

    async def run():
        with Worker() as worker:
            capturing = capture(sound[0], tmp_path, worker, realtime=True, speed=0.00001)
            reading = asyncio.create_task(capturing.read(done.append, asyncio.Event()))
            await worker.run(lambda: None)
            reading.cancel()
            await asyncio.wait({reading})
            state = await worker.run(capturing.state)
        return reading.cancelled(), state.counters.blocks

    assert asyncio.run(run()) == (True, 0)
    assert done == []


def asked_while_it_reads(source, tmp_path, **options):
    """What the worker says to a call that comes while it reads a source that gives no window; then the source ends."""

    async def run():
        stopping = asyncio.Event()
        with Worker() as worker:
            capturing = capture(source, tmp_path, worker, **options)
            reading = asyncio.create_task(capturing.read(lambda window: None, stopping))
            await asyncio.sleep(0)  # the worker was asked to read first
            answers = [await worker.run(str, number) for number in range(3)]
            early = reading.done()
            stopping.set()
            await reading
        return answers, early

    return asyncio.run(run())


ANSWERS = ["0", "1", "2"]


@pytest.mark.parametrize("realtime", [False, True])
def test_a_pipe_that_falls_silent_keeps_neither_calls_nor_the_end_waiting(standard_input, tmp_path, realtime):
    standard_input.write(bytes(2 * (WINDOW - 1)))
    assert asked_while_it_reads("-", tmp_path, realtime=realtime) == (ANSWERS, False)


def test_the_pause_before_a_window_of_a_file_keeps_no_call_waiting(sound, tmp_path):
    assert asked_while_it_reads(sound[0], tmp_path, realtime=True, speed=0.00001) == (ANSWERS, False)


def test_a_recording_in_which_all_is_gated_keeps_no_call_waiting(tmp_path):
    path = write_wav(tmp_path / "silence.wav", np.zeros(RATE, np.float32))
    assert asked_while_it_reads(path, tmp_path, loop=True, gate_db=-40.0) == (ANSWERS, False)


def unread_bytes():
    """What waits in the pipe that is standard input."""
    count = array.array("i", [0])
    fcntl.ioctl(0, termios.FIONREAD, count)
    return count[0]


def test_a_pipe_is_read_to_its_end_however_it_comes(standard_input, tmp_path):
    samples = np.arange(3 * WINDOW, dtype="<i2")

    async def run():
        collecting = asyncio.create_task(collect("-", tmp_path))
        for start in range(0, len(samples), 777):
            standard_input.write(samples[start : start + 777].tobytes())
            await eventually(lambda: unread_bytes() == 0)
        standard_input.close()
        return await collecting

    windows, _ = asyncio.run(run())
    assert [window.index for window in windows] == list(range(5))
    for window in windows:
        expected = samples[window.index * HOP : window.index * HOP + WINDOW] / 32768
        np.testing.assert_allclose(window.samples, expected, atol=1e-6)


def test_a_source_that_is_not_there_is_refused_at_once(tmp_path):
    with pytest.raises(SourceError, match=r"missing\.wav"):
        capture(tmp_path / "missing.wav", tmp_path, Worker())


def test_a_source_that_cannot_be_read_is_reported_to_the_reader(tmp_path):
    path = tmp_path / "text.wav"
    path.write_text("this is no audio")
    with pytest.raises(SourceError, match=r"text\.wav"):
        asyncio.run(collect(path, tmp_path))


def test_quiet_windows_are_gated_and_counted(tmp_path):
    samples = np.zeros(RATE, np.float32)
    samples[RATE // 2 :: 2] = 0.5
    windows, state = asyncio.run(collect(write_wav(tmp_path / "half.wav", samples), tmp_path, gate_db=-40.0))
    assert state.counters.gated > 5
    assert len(windows) + state.counters.gated == 19
    assert windows[0].index == 19 - len(windows)
