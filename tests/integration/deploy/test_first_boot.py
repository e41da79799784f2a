"""The script of a Pi's first boot, on an emulated system without a network.

systemctl is the real one, told that no systemd runs (SYSTEMD_OFFLINE): it writes links and starts nothing, so the
unit's own command is started by hand.
"""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import harness
import pytest
from installed import ssc

from tools.arm.userland import CommandError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SCRIPT = Path(__file__).parents[3] / "deploy" / "first-boot.sh"
CALL = "SYSTEMD_OFFLINE=1 sh /boot/firmware/streamsplit/first-boot.sh"
SETTINGS = """\
device = "pi-1"
broker = "nats://127.0.0.1:4222"
source = "/boot/firmware/streamsplit/file.wav"
realtime = false
drain_s = 0
results = ["/root/results.jsonl"]
pub = "/boot/firmware/streamsplit/signing.pub"
"""


def test_a_card_makes_a_device_that_runs_before_it_has_seen_a_network(userland, archive, toy, tmp_path):
    pi = userland("bookworm")
    pi.run("apt-get update && apt-get install --yes --no-install-recommends systemd")
    card = pi.root / "boot/firmware/streamsplit"
    card.mkdir(parents=True)
    shutil.copy(SCRIPT, card)

    def boots():
        return pi.run(CALL, network=False)

    def refuses(why):
        with pytest.raises(CommandError, match=f"exit code 2\n(.|\n)*{why}"):
            boots()

    refuses("aarch64.tar is missing: make it with make device-archive")
    shutil.copy(archive, card)
    refuses(r"ssc-edge\.toml is missing")
    (card / "ssc-edge.toml").write_text("spool_mb = 0\n")
    refuses(r"ssc-edge\.toml: spool_mb is 0")
    assert not (pi.root / "etc/ssc-edge.toml").exists()

    (card / "ssc-edge.toml").write_text(SETTINGS)
    (card / "ssc-edge.creds").write_text("a key\n")
    for name in ("stranger", "signing"):
        ssc("key", "new", "-o", tmp_path / f"{name}.key")
    shutil.copy(tmp_path / "signing.pub", card)
    harness.write_wav(card / "file.wav", 6.0, seed=3)
    for name, why in (("stranger", "signed by key"), ("signing", None)):
        shutil.rmtree(card / "bundle", ignore_errors=True)
        signed = ["--key", tmp_path / f"{name}.key", "-o", card / "bundle"]
        ssc("compile", toy / "encoder.pt", "--targets", "rpi4", "--cuts", "log_mel,one,two", *signed)
        if why:
            refuses(why)  # as the service would
            assert not (pi.root / "var/lib/ssc-edge/bundles.json").exists()
    said = boots()
    assert "verified and self-tested" in said
    assert "first-boot.sh: done" in said
    assert "installing into" not in said, "the archive was installed at an earlier call"
    assert pi.run("systemctl is-enabled ssc-edge") == "enabled\n"
    assert not (card / "ssc-edge.creds").exists()
    assert pi.run("stat -c '%U %a' /etc/ssc-edge.creds; cat /etc/ssc-edge.creds") == "root 600\na key\n"
    checked = pi.run("systemd-analyze verify /etc/systemd/system/ssc-edge.service")
    assert "ssc-edge.service:" not in checked
    unit = pi.run("cat /etc/systemd/system/ssc-edge.service /etc/systemd/system/ssc-edge.service.d/*")
    assert "LoadCredential=device.creds:/etc/ssc-edge.creds" in unit

    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    assert shlex.split(command)[0] == "/opt/ssc/bin/ssc"
    pi.run(command, network=False)
    results = [json.loads(line) for line in (pi.root / "root/results.jsonl").read_text().splitlines()]
    assert len(results) > 2
    assert {result["finished"] for result in results} == {"device"}

    mine = SETTINGS.replace("pi-1", "pi-2")
    (pi.root / "etc/ssc-edge.toml").write_text(mine)
    assert "first-boot.sh: done" in boots()
    assert (pi.root / "etc/ssc-edge.toml").read_text() == mine
    assert (pi.root / "etc/ssc-edge.creds").read_text() == "a key\n"


def test_a_power_cut_during_the_installation_costs_nothing(userland, archive):
    pi = userland("bookworm")
    card = pi.root / "boot/firmware/streamsplit"
    card.mkdir(parents=True)
    for file in (SCRIPT, archive):
        shutil.copy(file, card)
    (card / "ssc-edge.toml").write_text(SETTINGS)
    (pi.root / "opt/ssc/lib/python3.11/site-packages/numpy").mkdir(parents=True)  # what was there of numpy
    systemctl = pi.root / "usr/local/bin/systemctl"  # this system has none, which is all that is missing here
    systemctl.write_text('#!/bin/sh\n[ "$1" != --version ] || echo systemd 252\necho "$*" >>/root/asked\n')
    systemctl.chmod(0o755)

    assert "first-boot.sh: done" in pi.run(CALL, network=False)
    assert "ok      onnxruntime" in pi.run("/opt/ssc/bin/ssc doctor || true")

    assert started(pi) == "restart", "what runs has the old files"
    assert "installing into" not in pi.run(CALL, network=False)
    assert started(pi) == "start"

    for broken in (archive.read_bytes()[:1_000_000], damaged(archive)):
        (card / archive.name).write_bytes(broken)
        with pytest.raises(CommandError, match=r"exit code 2\n(.|\n)*is damaged: copy it here again"):
            pi.run(CALL, network=False)
        works = pi.run("/opt/ssc/bin/ssc doctor || true")
        assert "ok      onnxruntime" in works, "what was installed is left as it is"


def started(pi):
    """How the script asked last for the service."""
    asked = re.findall(r"^(\w+) --no-block ssc-edge$", (pi.root / "root/asked").read_text(), re.MULTILINE)
    return asked[-1]


def damaged(archive):
    """The archive with another byte in a wheel."""
    content = bytearray(archive.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        wheel = next(entry for entry in tar if "/wheels/soxr-" in entry.name)
    content[wheel.offset_data + wheel.size // 2] ^= 1
    return content


def test_only_root_may_call_it():
    nobody = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    done = subprocess.run([*nobody, "sh", "-s"], input=SCRIPT.read_text(), capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stdout) == (2, "")
    assert "only root" in done.stderr
