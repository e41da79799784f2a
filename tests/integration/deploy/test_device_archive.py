"""The archive that a Pi without a network installs from, on emulated systems of both Debian releases."""

import hashlib
import json
import shutil
import subprocess

import harness
import numpy as np
import pytest
from archives import make_archive
from installed import ssc

from runtime_edge.formats import minisign
from tools.arm.userland import CommandError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

RUN = "ssc edge run --bundle bundle/ --source file.wav --no-realtime --results results.jsonl"
ON_THE_PI = "/opt/ssc/bin/" + RUN


def embeddings(path):
    return np.array([json.loads(line)["embedding"] for line in path.read_text().splitlines()])


@pytest.fixture
def here(toy, tmp_path):
    """A bundle and a recording."""
    shutil.copytree(toy / "bundle", tmp_path / "here" / "bundle")
    harness.write_wav(tmp_path / "here" / "file.wav", 6.0, seed=3, rate=44_100, channels=2)
    return tmp_path / "here"


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_it_is_installed_without_a_network_and_embeds_as_this_machine_does(suite, userland, archive, here, monkeypatch):
    pi = userland(suite)
    home = pi.root / "root"
    shutil.copy(archive, home)
    shutil.copytree(here, home, dirs_exist_ok=True)

    said = pi.run(f"tar xf {archive.name} && sh streamsplit-device-*/install.sh", network=False)
    assert "ok      onnxruntime" in said
    pi.run(ON_THE_PI, network=False)
    assert "torch" not in pi.run("ls /opt/ssc/lib/python3*/site-packages")

    monkeypatch.chdir(here)
    ssc(*RUN.split()[1:])
    found, expected = embeddings(home / "results.jsonl"), embeddings(here / "results.jsonl")
    assert len(expected) > 2
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4

    again = pi.run("sh streamsplit-device-*/install.sh", network=False)
    assert "ok      onnxruntime" in again
    assert (home / "results.jsonl").exists()

    (wheel,) = home.glob("streamsplit-device-*/wheels/soxr-*abi3*.whl")
    damaged = bytearray(wheel.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    wheel.write_bytes(damaged)
    with pytest.raises(CommandError, match=r"exit code 2(.|\n)*the archive is damaged: copy it here again"):
        pi.run("sh streamsplit-device-*/install.sh /opt/other", network=False)
    assert not (pi.root / "opt/other").exists()


def test_the_same_sources_and_wheels_give_the_same_bytes_and_a_signature_that_minisign_verifies(archive, tmp_path):
    ssc("key", "new", "-o", tmp_path / "signing.key")
    again = make_archive(tmp_path / "again", "--key", tmp_path / "signing.key")

    digest, digest_again = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (archive, again))
    assert digest == digest_again
    public = minisign.read_public_key(tmp_path / "signing.pub")
    minisign.verify(again.read_bytes(), minisign.read_signature(minisign.signature_path(again)), public)
    if program := shutil.which("minisign"):
        subprocess.run([program, "-Vm", again, "-p", tmp_path / "signing.pub"], check=True, capture_output=True)


def test_where_it_cannot_be_installed_one_line_says_why(archive, tmp_path):
    subprocess.run(["tar", "xf", archive, "-C", tmp_path], check=True)
    (script,) = tmp_path.glob("*/install.sh")
    tools, into = tmp_path / "bin", tmp_path / "ssc"
    tools.mkdir()

    def refuses(why, **says):
        for name, word in says.items():
            (tools / name).write_text(f"#!/bin/sh\necho {word}\n")
            (tools / name).chmod(0o755)
        path = {"PATH": f"{tools}:/usr/bin:/bin"}
        done = subprocess.run(["sh", script, into], capture_output=True, text=True, env=path)
        (line,) = done.stderr.splitlines()
        assert (done.returncode, done.stdout) == (2, "")
        assert why in line

    refuses("for aarch64, this is armv7l: install the 64-bit Raspberry Pi OS", uname="armv7l")
    refuses("no wheels for cp39", uname="aarch64", python3="cp39")
    assert not into.exists()
    into.mkdir()
    (into / "recordings").touch()
    refuses("ssc is not empty and was not installed by this script", python3="cp311")
    assert (into / "recordings").exists()
