"""A device needs nothing but the extra `edge`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import harness
import numpy as np
import pytest
import soundfile

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
HEAVY = {"torch", "onnx", "onnxscript", "onnxsim", "matplotlib", "rich"}


@pytest.fixture(scope="module")
def device_environment(tmp_path_factory):
    """An environment of its own with the `edge` extra only, installed from a copy of the sources."""
    directory = tmp_path_factory.mktemp("device")
    sources = directory / "sources"
    ignore = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests", "demo-report")
    shutil.copytree(REPOSITORY, sources, ignore=ignore)
    environment = directory / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    command = [environment / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", f"{sources}[edge]"]
    installed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if installed.returncode and "connection broken" in installed.stderr:
        pytest.skip(f"the package index cannot be reached: {installed.stderr.strip().splitlines()[-1]}")
    assert installed.returncode == 0, installed.stderr
    return environment


def test_the_edge_extra_is_enough_and_any_sample_rate_will_do(device_environment, start, quiet_server, tmp_path):
    pip = [device_environment / "bin" / "pip", "list", "--format", "json", "--disable-pip-version-check"]
    installed = {package["name"].lower() for package in json.loads(subprocess.check_output(pip))}
    assert "onnxruntime" in installed
    assert not installed & HEAVY
    source = harness.write_wav(tmp_path / "audio.wav", 4.0, seed=13, rate=44_100, channels=2)

    device = start.device(
        quiet_server, "pi-installed", source, "--no-realtime", script=device_environment / "bin" / "ssc"
    )
    report = device.finish()

    samples = round(soundfile.info(source).duration * harness.SAMPLE_RATE)
    expected = (samples - harness.WINDOW) // harness.HOP + 1
    assert abs(report["windows_captured"] - expected) <= 1
    assert report["windows_acked"] == report["windows_captured"]
    assert report["torch_imported"] is False
    assert np.isclose([np.linalg.norm(r["embedding"]) for r in device.results()], 1.0, atol=1e-2).all()
    harness.until(lambda: quiet_server.counted("pi-installed") == report["windows_captured"], "windows counted")
