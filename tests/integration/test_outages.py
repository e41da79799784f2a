"""Killed processes: nothing captured is lost, and nothing is counted twice."""

import signal
import sqlite3

import harness
from idle_stream import settled


def test_a_killed_server_costs_no_window(start, tmp_path, toy_bundle, toy_model):
    server = start.server("--no-training")
    server.put_table(harness.always(toy_bundle, "rpi4", "one"))
    source = harness.write_wav(tmp_path / "audio.wav", 30.0, seed=2)
    device = start.device(server, "pi-1", source, "--deadline-ms", 300)
    device.wait_for_results(24)

    server.process.signal(signal.SIGKILL)
    killed = device.results()[-1]["window"] + 2  # what was on its way may have been answered
    device.wait_for_results(killed + 10)
    alone = [r for r in device.results() if r["window"] > killed]
    server.start()
    restarted = device.results()[-1]["window"]
    report = device.finish()

    windows, results = harness.windows_of(source), device.results()
    assert [r["window"] for r in results] == list(range(len(windows)))
    assert {r["finished"] for r in alone} <= {"fallback", "device"}
    assert any(r["finished"] == "server" for r in results if r["window"] > restarted + 4), "the link did not mend"
    assert harness.cosines(results, windows, toy_model).min() > 0.99
    assert report["windows_captured"] == report["windows_acked"] == len(windows)
    assert report["windows_lost"] == report["windows_spooled"] == 0
    assert report["windows_replayed"] >= len(alone) / 2
    harness.until(lambda: server.counted("pi-1") == len(windows), "every window counted")
    server.ask(settled)
    assert server.counted("pi-1") == len(windows), "counted twice"


def test_a_killed_broker_is_started_again(start, tmp_path, toy_bundle):
    server = start.server("--no-training")
    server.put_table(harness.always(toy_bundle, "rpi4", "one"))
    source = harness.write_wav(tmp_path / "audio.wav", 10.0, seed=3)
    device = start.device(server, "pi-1", source, "--deadline-ms", 300, "--loop")
    device.wait_for_results(10)

    server.signal_broker(signal.SIGKILL)
    killed = len(device.results())

    def mended():
        finished = [r["finished"] for r in device.results()[killed:]]
        return {"fallback", "device"} & set(finished) and finished[-1] == "server"

    harness.until(mended, "the server finishes windows again")
    device.process.signal(signal.SIGTERM)
    report = device.finish()
    assert report["windows_captured"] == report["windows_acked"] == len(device.results())
    harness.until(lambda: server.counted("pi-1") == report["windows_captured"], "every window counted")


def test_a_killed_device_sends_what_its_spool_holds_when_it_starts_again(
    start, quiet_server, tmp_path, toy_bundle, toy_model
):
    quiet_server.put_table(harness.always(toy_bundle, "rpi4", "one"))
    source = harness.write_wav(tmp_path / "audio.wav", 20.0, seed=4)
    first = start.device(quiet_server, "pi-crash", source, "--deadline-ms", 300)
    first.wait_for_results(8)
    first.kill_without_a_broker(quiet_server, 24)
    spooled = _spooled(tmp_path / "pi-crash-state" / "spool.db")
    assert len(spooled) >= 10
    captured = max(index for _, index in spooled) + 1

    other = harness.write_wav(tmp_path / "other.wav", 8.0, seed=5)
    second = start.device(quiet_server, "pi-crash", other)
    report = second.finish()

    windows = harness.windows_of(other)
    assert report["windows_inherited"] == report["windows_lost"] == report["windows_spooled"] == 0
    assert report["windows_captured"] == report["windows_acked"] == len(windows)
    assert report["windows_replayed"] == len(spooled)
    harness.until(lambda: quiet_server.counted("pi-crash") == captured + len(windows), "every window of both boots")
    # Windows of the two boots have the same numbers: an answer to one must not be taken for the other.
    assert harness.cosines(second.results(), windows, toy_model).min() > 0.99


def _spooled(path):
    with sqlite3.connect(path) as database:
        return database.execute("SELECT message_id, window_index FROM frames").fetchall()


def test_a_device_that_starts_without_a_broker_joins_when_there_is_one(start, tmp_path, toy_bundle):
    server = start.server("--no-training")
    server.put_table(harness.always(toy_bundle, "rpi4", "one"))
    source = harness.write_wav(tmp_path / "audio.wav", 2.0, seed=14)
    start.device(server, "pi-1", source, "--no-realtime").finish()  # fetches the bundle
    server.process.signal(signal.SIGKILL)

    source = harness.write_wav(tmp_path / "longer.wav", 60.0, seed=15)
    device = start.device(server, "pi-1", source, "--deadline-ms", 300)
    device.wait_for_results(4)
    assert {r["finished"] for r in device.results()} == {"device"}
    server.start()
    harness.until(lambda: device.results()[-1]["finished"] == "server", "the device has joined")
    server.put_table(harness.always(toy_bundle, "rpi4", "two"))
    # While there was no broker the smallest frame was spooled, which is of this cut, too.
    harness.until(lambda: (device.results()[-1]["finished"], device.results()[-1]["cut"]) == ("server", "two"), "two")
    harness.until(lambda: not _spooled(tmp_path / "pi-1-state" / "spool.db"), "the spool is empty")
    device.process.signal(signal.SIGTERM)
    report = device.finish()

    assert report["windows_lost"] == 0
    assert report["windows_replayed"] >= 4
    assert report["table_swaps"] == 1
