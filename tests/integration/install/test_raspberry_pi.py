"""README's "A real Raspberry Pi", word by word: on this machine what is for the gateway, on an emulated Pi the rest.

The Pi is a clean Debian for arm64 with what Raspberry Pi OS brings, and a user who may use sudo. In place of a sound
card ALSA plays a recording, and the device stops after a few windows, which on the page it does not.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import harness
import microphones
import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[3]
README = ROOT / "README.md"
WINDOWS = 3
RUN = "ssc edge run --broker nats://gateway:4222 --device pi-1 --credentials pi-1.creds --source mic --results -"
PATIENCE_S = 1200.0


def blocks(heading: str) -> list[str]:
    """The shell blocks of a section."""
    section = README.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


@pytest.fixture
def pi(userland):
    made = userland("bookworm")
    with (made.root / "etc/hosts").open("a") as hosts:
        hosts.write("127.0.0.1 gateway\n")
    (made.root / "etc/apt/apt.conf.d/90yes").write_text('APT::Get::Assume-Yes "true";\n')  # the user's answer to apt
    (made.root / "srv/card").mkdir()
    noise = np.random.default_rng(4).normal(0, 0.05, 20 * microphones.RATE)
    microphones.microphone(made.root / "srv/card", noise)
    settings = made.root / "srv/card/asound.conf"
    settings.write_text(settings.read_text().replace(str(made.root), ""))
    settings.rename(made.root / "etc/asound.conf")
    return made


@pytest.fixture
def clone(tmp_path):
    """This checkout's files, changes included."""
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "clone" / name)
    return tmp_path / "clone"


@pytest.fixture
def shell(clone, tmp_path):
    """`shell(lines)` is bash in the clone, in a home of its own, that types lines and ends at the first that fails."""
    (tmp_path / "home").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    log = (tmp_path / "gateway.log").open("w")
    started = []

    def shell(lines):
        started.append(subprocess.Popen(
            ["bash", "-ec", lines], cwd=clone, env={**kept, "HOME": str(tmp_path / "home"), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        ))  # fmt: skip
        return started[-1]

    yield shell
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)
    log.close()


def test_a_newcomer_types_it_and_the_windows_of_an_emulated_pi_arrive(pi, clone, shell, tmp_path):
    with socket.socket() as port:
        if port.connect_ex(("127.0.0.1", 4222)) == 0:
            pytest.skip("port 4222, which README names, is taken")
    gateway, second, device = blocks("A real Raspberry Pi")
    log, home = tmp_path / "gateway.log", pi.root / "home/pi"

    server = shell(gateway)
    harness.until(lambda: "serving generation" in log.read_text() or server.poll() is not None, "a server", PATIENCE_S)
    assert server.poll() is None, log.read_text()[-3000:]
    assert shell(second).wait(120) == 0, log.read_text()[-3000:]

    (wheel,) = (clone / "dist").glob("*.whl")
    for file in (wheel, clone / "pi-1.creds"):
        shutil.copy(file, home)
        os.chown(home / file.name, 1000, 1000)
    assert device.rstrip().endswith(RUN)
    said = pi.run(f"set -e\n{device.rstrip()} --max-windows {WINDOWS}\n", user=True, timeout=PATIENCE_S)

    assert "PROBLEM" not in said
    results = [line for line in said.splitlines() if line.startswith("{")]
    assert len(results) == WINDOWS, said[-3000:]
    status = f"{second.splitlines()[0]}\nssc server status --state server/"
    harness.until(lambda: shell(status).wait(120) == 0 and f"{WINDOWS} windows arrived" in log.read_text(), "windows")
