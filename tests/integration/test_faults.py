"""The fault matrix: kills at random moments, a silent link, a full disk, a clock that jumps. No window gets lost."""

import json
import os
import signal
import time
from contextlib import closing
from pathlib import Path

import harness
import numpy as np
import psutil
import pytest
from idle_stream import settled

from runtime_edge.formats import subjects
from runtime_edge.transport.spool.spool import Spool, SpoolCounters
from tools.small_disk import small_disk

pytestmark = pytest.mark.timeout(1800)
KILLS = int(os.environ.get("SSC_TEST_KILLS", "100"))
VICTIMS = ("device", "broker", "device", "server", "device", "broker")
CUT_S = float(os.environ.get("SSC_TEST_CUT_S", "120"))
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


def boot_of(device, state):
    """The boot that runs in a state directory, and the last window it has given a result for."""
    results = device.results()
    try:
        boot = json.loads((state / "status.json").read_text())["report"]["boot"]
    except FileNotFoundError:
        return None, -1
    return boot, results[-1]["window"] if results else -1


def written(status):
    """When a device has last said how it is, by its own clock."""
    try:
        return float(json.loads(status.read_text())["written"])
    except FileNotFoundError:
        return 0.0


def kill_broker(server):
    """Whatever process the server says its broker is, if it still is one."""
    try:
        process = psutil.Process(int((server.state / "broker" / "broker.pid").read_text()))
        if process.name().startswith("nats-server"):
            process.kill()
    except (OSError, ValueError, psutil.Error):
        return  # it is being started, or has died with the server


@pytest.mark.parametrize("kills", [len(VICTIMS), pytest.param(KILLS, marks=pytest.mark.slow)])
def test_kills_of_device_server_and_broker_at_random_moments_lose_nothing(start, tmp_path, toy_bundle, kills):
    print(f"SSC_TEST_SEED={harness.SEED}")
    rng = np.random.default_rng(harness.SEED)
    server = start.server("--no-training")
    server.put_table(harness.always(toy_bundle, "rpi4", "one"))
    source = harness.write_wav(tmp_path / "audio.wav", 8.0, seed=20)
    state = tmp_path / "pi-1-state"

    def start_device(*options):
        return start.device(server, "pi-1", source, "--deadline-ms", 300, *options)

    device, seen = start_device("--loop"), {}
    device.wait_for_results(4)
    for victim in rng.permutation(np.resize(VICTIMS, kills)):
        time.sleep(rng.uniform(0.05, 1.5))
        if victim == "broker":
            kill_broker(server)
        elif victim == "server":
            server.process.signal(signal.SIGKILL)
            server.process = server.launch()
        else:
            device.process.signal(signal.SIGKILL)
            boot, last = boot_of(device, state)
            seen[boot] = max(last, seen.get(boot, -1))
            device = start_device("--loop")
    device.process.signal(signal.SIGKILL)
    server.process.signal(signal.SIGKILL)
    server.start()
    report = start_device("--drain-s", 60, "--deadline-ms", 300).finish()
    server.ask(settled)
    counted = server.counted("pi-1")
    server.process.signal(signal.SIGTERM)

    harness.assert_no_traceback(tmp_path)
    with closing(Spool(state / "spool.db", 1 << 30)) as spool:
        assert spool.counters() == SpoolCounters(put=counted, acked=counted, dropped=0)
    assert report["windows_lost"] == report["windows_spooled"] == report["windows_inherited"] == 0
    assert report["dropped"] == {}
    assert report["inherited_dropped"] == 0
    chains = json.loads((server.state / "ledger" / f"{subjects.partition('pi-1')}.json").read_text())
    runs = {chain.partition(".")[2]: runs for chain, runs in chains.items()}
    assert all(len(found) == 1 and found[0][0] == 0 for found in runs.values()), f"a window is missing: {runs}"
    assert sum(found[0][1] + 1 for found in runs.values()) == counted, "counted twice"
    for boot, last in seen.items():
        if last >= 0:
            assert runs[boot][0][1] >= last, "a window that had its result never arrived"
    assert any(last >= 0 for last in seen.values()), "no boot lived long enough to be looked at"


@pytest.mark.parametrize("cut_s", [8.0, pytest.param(CUT_S, marks=pytest.mark.slow)])
def test_a_link_that_is_silent_costs_no_window(start, tmp_path, toy_bundle, toy_model, cut_s):
    server = start.server("--no-training")
    server.put_table(harness.always(toy_bundle, "rpi4", "one"))
    source = harness.write_wav(tmp_path / "audio.wav", cut_s + 5.0, seed=21)
    device = start.device(server, "pi-1", source, "--deadline-ms", 300, "--drain-s", 60)
    device.wait_for_results(8)

    server.signal_broker(signal.SIGSTOP)
    try:
        device.wait_for_results(len(device.results()) + int(cut_s / harness.HOP_S))
        assert device.process.running, "the device did not go on alone"
    finally:
        server.signal_broker(signal.SIGCONT)
    report = device.finish(cut_s + 120.0)

    windows, results = harness.windows_of(source), device.results()
    assert [r["window"] for r in results] == list(range(len(windows)))
    assert harness.cosines(results, windows, toy_model).min() > 0.99
    assert report["windows_captured"] == report["windows_acked"] == len(windows)
    assert report["windows_lost"] == report["windows_spooled"] == report["windows_dropped"] == 0
    harness.until(lambda: server.counted("pi-1") == len(windows), "every window counted")


@pytest.fixture(name="small_disk")
def small_disk_of_6_mb(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    with small_disk(place, 6) as mounted:
        if not mounted:
            pytest.skip("a small file system cannot be mounted here: root is needed")
        yield place


@pytest.mark.slow
def test_a_full_disk_costs_only_what_could_not_be_sent_either_and_says_so(start, tmp_path, toy_bundle, small_disk):
    server = start.server("--no-training")
    server.put_table(harness.always(toy_bundle, "rpi4", "one"))
    source = harness.write_wav(tmp_path / "audio.wav", 60.0, seed=22)
    device = start.device(
        server, "pi-1", source, "--deadline-ms", 300, "--state", small_disk / "state", "--drain-s", 30
    )
    device.wait_for_results(8)

    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(8 << 20))
    server.signal_broker(signal.SIGSTOP)
    try:
        before = len(device.results())
        harness.until(lambda: len(device.results()) > before + 30, "the device goes on")
    finally:
        server.signal_broker(signal.SIGCONT)
    filler.unlink()
    reached = len(device.results())
    harness.until(
        lambda: any(r["finished"] == "server" for r in device.results()[reached:]) or not device.process.running,
        "the link mends",
    )
    report = device.finish()

    windows = len(harness.windows_of(source))
    assert len(device.results()) == report["windows_captured"] == windows
    assert set(report["dropped"]) == {"spool_refused"}
    assert report["windows_acked"] + report["windows_dropped"] == windows
    assert report["windows_lost"] == report["windows_spooled"] == report["windows_undecided"] == 0
    harness.until(lambda: server.counted("pi-1") == report["windows_acked"], "every window counted")


@pytest.mark.slow
@pytest.mark.skipif(not FAKETIME, reason="libfaketime is not installed (Debian: libfaketime)")
def test_a_clock_that_jumps_an_hour_either_way_disturbs_nothing(start, tmp_path, toy_bundle, toy_model, monkeypatch):
    server = start.server("--no-training")
    server.put_table(harness.always(toy_bundle, "rpi4", "one"))
    source = harness.write_wav(tmp_path / "audio.wav", 16.0, seed=23)
    clock, status = tmp_path / "clock", tmp_path / "pi-1-state" / "status.json"
    clock.write_text("+0\n")
    with monkeypatch.context() as faked:
        faked.setenv("LD_PRELOAD", str(FAKETIME[0]))
        faked.setenv("FAKETIME_TIMESTAMP_FILE", str(clock))
        faked.setenv("FAKETIME_NO_CACHE", "1")
        faked.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        device = start.device(server, "pi-1", source)
    for count, offset in ((16, "+3600"), (48, "-3600")):
        device.wait_for_results(count)
        before = written(status)
        clock.write_text(f"{offset}\n")
        harness.until(lambda before=before: abs(written(status) - before) > 3000, "a jump")
    report = device.finish()

    windows, results = harness.windows_of(source), device.results()
    assert [r["window"] for r in results] == list(range(len(windows)))
    assert harness.cosines(results, windows, toy_model).min() > 0.99
    assert report["windows_captured"] == report["windows_acked"] == len(windows)
    beyond_s = np.diff([r["time"] for r in results]) - harness.HOP_S
    jumps_s = beyond_s[~np.isclose(beyond_s, 0.0, atol=1e-3)]
    assert np.allclose(jumps_s, [3600, -7200], atol=1.0), "times follow the clock where it jumps, else the audio"
    assert {r["finished"] for r in results[8:]} == {"server"}
