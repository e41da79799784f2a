"""Disks that take half a second to write, links that lose packets or end without a word, and memory that runs out:
every window is acknowledged, waits in the spool, or is counted as dropped with its reason."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import harness
import pytest
from idle_stream import settled

from runtime_edge.service.status import problems, read_status
from runtime_edge.transport.spool.spool import Spool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SYNC_S = 0.5
CGROUPS = Path("/sys/fs/cgroup/memory")
MEMORY_BYTES = 2 << 30
"""More than a device or a server needs."""
HERE, THERE = "10.213.78.1", "10.213.78.2"
HOG = """
import time
held = bytearray()
while True:
    try:
        held.extend(bytes(16 << 20))
    except MemoryError:
        pass
    time.sleep(0.01)
"""


def wrapper(path, command):
    """A script that runs `ssc` by way of a command."""
    ssc = Path(sys.executable).with_name("ssc")
    path.write_text(f'#!/bin/sh\n{command} "{ssc}" "$@"\n')
    path.chmod(0o755)
    return path


def assert_accounted(report):
    assert report["windows_lost"] == report["windows_undecided"] == 0
    assert report["windows_captured"] == report["windows_acked"] + report["windows_spooled"] + report["windows_dropped"]
    assert sum(report["dropped"].values()) == report["windows_dropped"]


@pytest.fixture
def slow_sync(tmp_path):
    """A script that runs `ssc` on a disk that takes half a second for each fsync."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: it is what makes fsync slow")
    command = (
        f"strace -D -f -qq -o /dev/null -e trace=fsync,fdatasync -e inject=fsync,fdatasync:delay_enter={SYNC_S:g}s"
    )
    if subprocess.run([*command.split(), "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here, or cannot delay calls")
    return wrapper(tmp_path / "slow-ssc", f"exec {command}")


@pytest.mark.parametrize("side", ["device", "server"])
def test_a_disk_that_takes_half_a_second_to_write_costs_no_window(start, tmp_path, toy_bundle, slow_sync, side):
    server = start.server("--no-training", script=slow_sync if side == "server" else None)
    server.put_table(harness.always(toy_bundle, "rpi4", "one"))
    source = harness.write_wav(tmp_path / "audio.wav", 20.0, seed=31)
    device = start.device(
        server, "pi-1", source, "--deadline-ms", 300, "--drain-s", 120, script=slow_sync if side == "device" else None
    )
    report = device.finish(600.0)

    assert_accounted(report)
    assert report["windows_captured"] == report["windows_acked"] == len(harness.windows_of(source))
    assert [r["window"] for r in device.results()] == list(range(report["windows_captured"]))
    harness.until(lambda: server.counted("pi-1") == report["windows_acked"], "every window counted")
    harness.assert_no_traceback(tmp_path)


class Cable:
    """A device's own network, on a cable whose other end is this machine's."""

    def __init__(self):
        self.name = f"ssc-test-{os.getpid()}"
        self._link = f"ssc{os.getpid()}"

    def __enter__(self):
        self._ip("netns", "add", self.name)
        try:
            self._ip("link", "add", self._link, "type", "veth", "peer", "name", "uplink", "netns", self.name)
            self._ip("address", "add", f"{HERE}/30", "dev", self._link)
            self._ip("link", "set", self._link, "up")
            self._ip("-n", self.name, "address", "add", f"{THERE}/30", "dev", "uplink")
            self._ip("-n", self.name, "link", "set", "uplink", "up")
            self._ip("-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._ip("netns", "delete", self.name)

    def lose_packets(self, kbit):
        """What does not fit a queue of two packets is dropped."""
        self._tc("replace", "dev", "uplink", "root", "tbf", "rate", f"{kbit}kbit", "burst", "1600", "limit", "3200")

    def whole(self):
        """No packet is dropped any more."""
        self._tc("delete", "dev", "uplink", "root")

    def dropped(self):
        """Packets that were, so far."""
        told = self._tc("show", "dev", "uplink", statistics=True)
        return int(told.split("dropped ")[1].split(",")[0])

    def pull(self):
        """From now on nothing arrives, and neither side is told."""
        self._ip("link", "set", self._link, "down")

    def plug(self):
        self._ip("link", "set", self._link, "up")

    def _tc(self, *words, statistics=False):
        return self._ip("netns", "exec", self.name, "tc", *(["-s"] if statistics else []), "qdisc", *words)

    def _ip(self, *words):
        return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30).stdout


@pytest.fixture
def cable():
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip("a network of its own needs root, ip and tc on Linux")
    try:
        made = Cable().__enter__()
    except subprocess.CalledProcessError as exc:
        pytest.skip(f"network namespaces are not permitted here ({exc.stderr.strip()})")
    yield made
    made.__exit__()


def test_a_link_that_loses_packets_and_then_ends_without_a_word_costs_no_window(start, tmp_path, toy_bundle, cable):
    server = start.server("--no-training", "--host", "0.0.0.0", "--no-auth")
    server.put_table(harness.always(toy_bundle, "rpi4", "one"))
    source = harness.write_wav(tmp_path / "audio.wav", 60.0, seed=32)
    there = wrapper(tmp_path / "ssc-there", f"exec ip netns exec {cable.name}")
    device = start.device(
        f"nats://{HERE}:{server.port}", "pi-1", source, "--deadline-ms", 300, "--drain-s", 120, script=there
    )
    device.wait_for_results(8)

    cable.lose_packets(kbit=30)
    device.wait_for_results(100)
    lossy = cable.dropped()
    cable.whole()
    cable.pull()
    try:
        device.wait_for_results(260)
    finally:
        cable.plug()
    report = device.finish(600.0)

    assert lossy > 0, "the link lost nothing"
    assert_accounted(report)
    assert report["windows_captured"] == report["windows_acked"] == len(harness.windows_of(source))
    assert [r["window"] for r in device.results()] == list(range(report["windows_captured"]))
    harness.until(lambda: server.counted("pi-1") == report["windows_acked"], "every window counted")
    harness.assert_no_traceback(tmp_path)


@pytest.fixture
def memory(tmp_path):
    """A script that runs `ssc` with little memory, and a function that uses all of it up until somebody is killed."""
    group = CGROUPS / f"ssc-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(MEMORY_BYTES))
    except OSError:
        pytest.skip("memory cannot be limited here: root and the memory controller of cgroup v1 are needed")
    inside = f"echo $$ > {group}/cgroup.procs; exec"
    first = f"echo 1000 > /proc/self/oom_score_adj; {inside}"  # to be killed

    def use_up(victim):
        hog = subprocess.Popen(["/bin/sh", "-c", f'{inside} "$0" -c "$1"', sys.executable, HOG])
        try:
            harness.until(lambda: not victim.running or hog.poll() is not None, "somebody is killed")
        finally:
            hog.kill()
            hog.wait()

    yield wrapper(tmp_path / "ssc-inside", first), use_up
    for pid in (group / "cgroup.procs").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    harness.until(lambda: not (group / "cgroup.procs").read_text(), "all have left")
    group.rmdir()


@pytest.mark.parametrize("side", ["device", "server"])
def test_whoever_is_killed_for_memory_loses_no_window(start, tmp_path, toy_bundle, memory, side):
    script, use_up = memory
    server = start.server("--no-training", script=script if side == "server" else None)
    server.put_table(harness.always(toy_bundle, "rpi4", "one"))
    source = harness.write_wav(tmp_path / "audio.wav", 20.0, seed=33)
    inside = script if side == "device" else None
    device = start.device(server, "pi-1", source, "--deadline-ms", 300, "--loop", script=inside)
    device.wait_for_results(16)
    state = tmp_path / "pi-1-state"

    if side == "device":
        use_up(device.process)
        (said,) = problems(state, read_status(state))
        assert "killed" in said
    else:
        use_up(server.process)
        before = len(device.results())
        device.wait_for_results(before + 16)
        device.process.signal(signal.SIGTERM)
        server.start()
    report = start.device(server, "pi-1", source, "--deadline-ms", 300, "--drain-s", 120, script=inside).finish(600.0)

    assert_accounted(report)
    assert report["windows_spooled"] == report["windows_inherited"] == report["windows_dropped"] == 0
    with closing(Spool(state / "spool.db", 1 << 30)) as spool:
        counters = spool.counters()
    assert counters.dropped == 0
    assert counters.put == counters.acked
    harness.until(lambda: server.counted("pi-1") == counters.put, "every window counted once")
    server.ask(settled)
    assert server.counted("pi-1") == counters.put, "counted twice"
    harness.assert_no_traceback(tmp_path)
