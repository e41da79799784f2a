"""One state file after the other is damaged, a device's or a server's: both start again or say what to do, and every
window is acknowledged or counted as dropped."""

import os
import random
import shutil
import signal
from contextlib import closing

import harness
import pytest

from runtime_edge.transport.spool.spool import Spool

DAMAGES = int(os.environ.get("SSC_TEST_DAMAGES", "100"))
NOT_STATE = ("broker", "status.json", "updates.jsonl")
"""nats-server's own files, and what is only looked at."""


def empty(path, chosen):
    path.write_bytes(b"")


def cut_short(path, chosen):
    path.write_bytes(path.read_bytes()[: chosen.randrange(path.stat().st_size)])


def flip_a_bit(path, chosen):
    data = bytearray(path.read_bytes())
    data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
    path.write_bytes(data)


def zero_a_block(path, chosen):
    data = bytearray(path.read_bytes())
    start = chosen.randrange(len(data))
    data[start : start + 512] = bytes(len(data[start : start + 512]))
    path.write_bytes(data)


def delete(path, chosen):
    path.unlink()


KINDS = (empty, cut_short, flip_a_bit, zero_a_block, delete)


def damage(state, chosen):
    """Damage one file of a state directory; returns what was done to which."""
    files = [file for file in sorted(state.rglob("*")) if file.is_file() and file.stat().st_size]
    files = [file for file in files if file.relative_to(state).parts[0] not in NOT_STATE and file.suffix != ".lock"]
    path, kind = chosen.choice(files), chosen.choice(KINDS)
    kind(path, chosen)
    return f"{kind.__name__} {path.relative_to(state.parent)}"


@pytest.mark.parametrize("damages", [6, pytest.param(DAMAGES, marks=pytest.mark.slow)])
@pytest.mark.timeout(7200)
def test_a_damaged_state_file_costs_no_window_that_is_not_counted(start, tmp_path, toy_bundle, damages):
    chosen, reports = random.Random(harness.SEED), []
    server = start.server("--no-training")
    server.put_table(harness.always(toy_bundle, "rpi4", "one"))
    source = harness.write_wav(tmp_path / "audio.wav", 6.0, seed=24)
    state = tmp_path / "pi-1-state"
    print(f"SSC_TEST_SEED={harness.SEED}")

    def run_device():
        """Until it is ended while the broker stands still, and what it has not delivered is in its spool."""
        device = start.device(server, "pi-1", source, "--deadline-ms", 300, "--loop", "--drain-s", 1)
        device.wait_for_results(6)
        server.signal_broker(signal.SIGSTOP)
        device.wait_for_results(12)
        device.process.signal(signal.SIGTERM)
        server.signal_broker(signal.SIGCONT)
        if device.process.running or device.results():
            reports.append(device.finish())
        return device.process

    run_device()
    for _ in range(damages):
        side = chosen.choice([state, server.state])
        if side == server.state:
            kill(server)
        kept = shutil.copytree(side, tmp_path / "kept")
        print(damage(side, chosen))
        before = len(reports)
        if side == server.state and not starts(server):
            put_back(kept, server.state)
            server.start()
        process = run_device()
        if len(reports) == before:
            assert_refused(process)
            put_back(kept, state)
        shutil.rmtree(kept)
        harness.assert_no_traceback(tmp_path)
    device = start.device(server, "pi-1", source, "--deadline-ms", 300, "--drain-s", 60)
    reports.append(device.finish())

    assert all(report["windows_lost"] == 0 for report in reports)
    assert reports[-1]["windows_spooled"] == reports[-1]["windows_inherited"] == 0
    spool = Spool(state / "spool.db", 1 << 30)
    counters = spool.counters()
    spool.close()
    said = sum(sum(report["dropped"].values()) + report["inherited_dropped"] for report in reports)
    assert counters.put == sum(report["windows_captured"] for report in reports)
    assert counters.acked + counters.dropped == counters.put
    assert counters.dropped == said


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damage_to_the_log_of_the_spool_alone_is_counted(start, tmp_path, toy_bundle, kind):
    server = start.server("--no-training")
    server.put_table(harness.always(toy_bundle, "rpi4", "one"))
    source = harness.write_wav(tmp_path / "audio.wav", 8.0, seed=25)
    state = tmp_path / "pi-1-state"
    device = start.device(server, "pi-1", source, "--deadline-ms", 300, "--loop")
    device.wait_for_results(4)
    device.kill_without_a_broker(server, 32)
    before = device.results()[-1]["window"] + 1
    kind(state / "spool.db-wal", random.Random(harness.SEED))

    report = start.device(server, "pi-1", source, "--deadline-ms", 300, "--drain-s", 60).finish()

    assert report["windows_captured"] == report["windows_acked"]
    assert report["windows_lost"] == report["windows_spooled"] == report["windows_inherited"] == 0
    with closing(Spool(state / "spool.db", 1 << 30)) as spool:
        counters = spool.counters()
    assert counters.put >= before + report["windows_captured"]
    assert counters.acked + counters.dropped == counters.put
    assert counters.dropped == report["inherited_dropped"]
    harness.assert_no_traceback(tmp_path)


def kill(server):
    server.signal_broker(signal.SIGKILL)
    server.process.signal(signal.SIGKILL)


def starts(server):
    """Whether a server starts; one that does not has to say in one line which file is damaged and what to do."""
    try:
        server.start()
    except AssertionError:
        assert_refused(server.process)
        return False
    return True


def assert_refused(process):
    last = process.text().splitlines()[-1]
    assert "put back a copy" in last or "remove" in last, process.text()[-2000:]


def put_back(kept, place):
    shutil.rmtree(place)
    shutil.copytree(kept, place)
