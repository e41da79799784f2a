"""Extras that are a library alone, and the base without any: each does what it is for and brings nothing else."""

from __future__ import annotations

import json
import sys
from importlib.metadata import metadata
from pathlib import Path

import harness
import pytest
from installed import SPECIAL, brought, embedding_error
from microphones import portaudio_is_missing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def tflite_bundle(toy, tmp_path_factory) -> Path:
    from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
    from streamsplit_compile.cost.targets import load_target
    from streamsplit_compile.encoder.encoders import load_encoder

    pytest.importorskip("litert_torch", reason="the TFLite converter is not installed: extra compile-tflite")
    directory = tmp_path_factory.mktemp("tflite") / "bundle"
    options = CompileOptions([load_target("rpi4")], cuts="log_mel,one,two", formats=("tflite",))
    compile_encoder(load_encoder(toy / "encoder.pt"), options, directory)
    return directory


def test_nothing_but_the_base_reads_formats_and_names_the_extra_that_runs_them(install, toy):
    environment = install()
    assert brought(environment) == set()
    code = """
import sys
from pathlib import Path
from runtime_edge.formats.bundle import open_bundle
print([cut.name for cut in open_bundle(Path(sys.argv[1])).manifest.info.cuts])
"""
    assert "log_mel" in environment.python(code, toy / "bundle")
    said = environment.ssc("edge", "run", "--bundle", toy / "bundle", "--source", "-", code=2)
    assert "[edge]" in said
    assert "Traceback" not in said
    assert "[edge]" in environment.ssc("doctor", code=1)


@pytest.mark.parametrize("extra", ["edge-tflite", "edge-tflite-runtime"])
def test_a_device_runs_tflite_without_onnxruntime(install, tflite_bundle, toy_model, tmp_path, extra):
    if extra == "edge-tflite-runtime" and sys.version_info >= (3, 12):
        pytest.skip("tflite-runtime has no wheel for this Python")
    environment = install(extra)
    assert extra in brought(environment)
    assert "onnxruntime" not in environment.packages()
    assert embedding_error(environment, tflite_bundle, toy_model, tmp_path) <= 1e-4
    source, results = harness.write_wav(tmp_path / "audio.wav", 2.0, seed=16), tmp_path / "results.jsonl"
    assert "self-test of tflite-fp32" in environment.ssc("doctor", tflite_bundle)
    environment.ssc("profile", tflite_bundle, "--target", "rpi4", "-o", tmp_path / "profile.json")
    environment.ssc("edge", "install", tflite_bundle, "--state", tmp_path / "state")
    device = ["edge", "run", "--bundle", tflite_bundle, "--source", source, "--no-realtime", "--results", results]
    environment.ssc(*device, "--state", tmp_path / "state")
    assert results.read_text().count('"finished":"device"') == len(harness.windows_of(source))


def test_the_audio_extra_reads_files_and_names_the_library_of_the_microphone(install, tmp_path):
    environment = install("audio")
    source = harness.write_wav(tmp_path / "audio.wav", 2.0, seed=14, rate=44_100, channels=2)
    code = "import sys, pathlib; from runtime_edge.audio.file_decoder import recording_length as length; print(length("
    assert "44100" in environment.python(code + "pathlib.Path(sys.argv[1])))", source)
    printed = environment.ssc("doctor", "--json", code=1)
    findings = {found["what"]: found["state"] for found in json.JSONDecoder().raw_decode(printed)[0]}
    assert {findings[name] for name in ("soundfile", "soxr")} == {"ok"}
    assert findings["sounddevice"] == ("problem" if portaudio_is_missing() else "ok")
    code = """
from runtime_edge.audio.audio_block import SYSTEM_CLOCK, Counters
from runtime_edge.audio.microphone import Microphone
from runtime_edge.errors import SourceError
try:
    Microphone("no such microphone", 1.0, Counters(), SYSTEM_CLOCK)
except SourceError as exc:
    print(exc)
"""
    assert "microphone" in environment.python(code)


def test_the_metrics_extra_is_what_prometheus_reads(install):
    environment = install("metrics")
    assert brought(environment) == {"metrics"}
    code = """
import urllib.request
from runtime_edge.base import prometheus
from prometheus_client.core import GaugeMetricFamily
prometheus.require()
server, thread = prometheus.serve(0, lambda: [GaugeMetricFamily("ssc_windows", "Windows.", value=3)])
print(urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics").read().decode())
server.shutdown(); server.server_close()
"""
    assert "ssc_windows 3.0" in environment.python(code)


def test_the_tensorboard_extra_brings_the_writer(install):
    environment = install("tensorboard")
    assert brought(environment) == {"tensorboard"}
    environment.python("from tensorboardX import SummaryWriter")


def test_every_extra_is_tried():
    """All but `dev`, which is the environment of these tests."""
    tried = {extra for extras in SPECIAL.values() for extra in extras}
    assert tried | {"dev"} == set(metadata("streamsplit-audio").get_all("Provides-Extra"))
