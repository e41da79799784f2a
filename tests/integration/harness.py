"""Real processes, real audio, a real broker: what the integration tests share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from small_tables import always as always
from torch import nn
from waiting import PATIENCE_S as PATIENCE_S
from waiting import eventually as eventually
from waiting import until as until

from runtime_edge.errors import LinkError
from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.formats.records.table import SplitterTable
from runtime_server.broker.hub import Hub
from runtime_server.broker.stored_frames import stored_frames
from runtime_server.harness.ports import free_port
from runtime_server.state.server_state import ServerState
from streamsplit_compile.bundle.compiler import recompile
from streamsplit_compile.bundle.soundscape import soundscape
from streamsplit_models.encoder import Normalize
from streamsplit_models.front_end import FrontEnd
from streamsplit_models.log_mel import LogMel

SAMPLE_RATE, WINDOW, HOP = 16_000, 4000, 2000
HOP_S = HOP / SAMPLE_RATE
SEED = int(os.environ.get("SSC_TEST_SEED", "0"))
"""What is killed or damaged, and when."""
CUTS = ("waveform", "log_mel", "one", "two", "normalize")


class Toy(nn.Module):
    """Waveform (batch, 4000) at 16 kHz -> unit embedding (batch, 16), small enough to train within seconds."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.log_mel = LogMel(FrontEnd(n_mels=16, window_samples=WINDOW, hop_samples=HOP))
            self.one, self.two = _block(1, 8), _block(8, 16)
            self.projection = nn.Linear(16, 16)
            self.normalize = Normalize()
        self.eval()

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        image = self.two(self.one(self.log_mel(waveform)))
        return self.normalize(self.projection(image.mean(dim=(2, 3))))


def _block(channels_in: int, channels: int) -> nn.Sequential:
    norm = nn.BatchNorm2d(channels)
    norm.running_mean.normal_(0, 0.1)
    norm.running_var.uniform_(2.0, 8.0)
    return nn.Sequential(nn.Conv2d(channels_in, channels, 3, stride=2, padding=1, bias=False), norm, nn.ReLU())


def write_wav(path: Path, seconds: float, seed: int, rate: int = SAMPLE_RATE, channels: int = 1) -> Path:
    """A synthetic soundscape as 16-bit PCM."""
    audio = soundscape(seconds, rate, seed)
    soundfile.write(path, np.stack([audio] * channels, axis=1), rate, subtype="PCM_16")
    return path


def windows_of(path: Path) -> np.ndarray:
    """What a device captures of a mono file at the encoder's rate: (windows, samples) float32."""
    audio, rate = soundfile.read(path, dtype="float32")
    assert rate == SAMPLE_RATE
    return np.stack([audio[start : start + WINDOW] for start in range(0, len(audio) - WINDOW + 1, HOP)])


def cosines(results: list[dict], windows: np.ndarray, model: nn.Module) -> np.ndarray:
    """Cosine of each result with what the whole torch encoder makes of its window."""
    with torch.no_grad():
        expected = model(torch.from_numpy(windows[[r["window"] for r in results]])).numpy()
    found = np.array([r["embedding"] for r in results])
    return (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)


def assert_no_traceback(directory):
    """No start of a device, a server or a broker has ended in a traceback."""
    for log in directory.rglob("*.log"):
        assert "Traceback" not in log.read_text(errors="replace"), log


def get(page: str, view: str, token: str = "") -> Any:
    """A view of a server's page; raises urllib.error.HTTPError for an answer that is none."""
    request = urllib.request.Request(f"{page}api/v1/{view}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return json.load(answer)


class Process:
    """One running `ssc` command with its output in a log file."""

    def __init__(self, log: Path, *arguments: object, script: Path | None = None) -> None:
        self.log = log
        ssc = script or Path(sys.executable).with_name("ssc")
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(ssc), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=log.parent,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for_line(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        until(lambda: text in self.text() or not self.running, f"{text!r} in {self.text()[-2000:]}", timeout_s)
        assert text in self.text(), f"ended without {text!r}: {self.text()[-2000:]}"

    def finish(self, timeout_s: float = PATIENCE_S) -> None:
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s} s: {self.text()[-2000:]}") from None
        assert code == 0, f"exit code {code}: {self.text()[-2000:]}"

    def signal(self, number: signal.Signals) -> None:
        if self.running:
            self._process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._process.wait(30.0)


class Server:
    """A server process on a port and state directory of its own."""

    def __init__(
        self, directory: Path, encoder: Path, bundle: Path, *options: object, script: Path | None = None
    ) -> None:
        self.directory, self.port, self._script = directory, free_port(), script
        self.state = directory / "server"
        self._command = ["server", "run", encoder, bundle, "--state", self.state, "--port", self.port, *options, "-v"]
        self.process = self.start()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def launch(self, *options: object) -> Process:
        """Start the process and do not wait for it. Options given here win over earlier ones, for this start."""
        return Process(self.directory / "server.log", *self._command, *options, script=self._script)

    def start(self, *options: object) -> Process:
        log = self.directory / "server.log"
        seen = log.read_text().count("serving generation") if log.exists() else 0
        self.process = self.launch(*options)
        until(lambda: self.process.text().count("serving generation") > seen or not self.process.running, "serving")
        assert self.process.running, self.process.text()[-2000:]
        return self.process

    @property
    def page(self) -> str:
        """The page's address, once the latest start has told it."""

        def told() -> re.Match[str] | None:
            return re.search(r"page on (http://[0-9.]+:\d+/)", self.process.text().rpartition("serving generation")[2])

        return until(told, "the page's address")[1]

    def signal_broker(self, number: signal.Signals) -> None:
        os.kill(int((self.state / "broker" / "broker.pid").read_text()), number)

    def ask(self, work):
        """Run `await work(hub)` on a connection of its own."""

        async def connected():
            async with Hub(self.url, "test") as hub:
                return await work(hub)

        return asyncio.run(connected())

    def frames_of(self, device: str) -> list[bytes]:
        """Every frame of a device that the broker has stored, in order."""

        async def read(hub: Hub) -> list[bytes]:
            parts = stored_frames(hub, subjects.frames(device), 1, 256)
            return [message.data async for part in parts for message in part]

        return self.ask(read)

    @property
    def key(self) -> minisign.SecretKey:
        return minisign.read_secret_key(self.state / "signing.key")

    def put_table(self, table: SplitterTable, device: str | None = None) -> None:
        self.ask(lambda hub: hub.put_table(table, self.key, device))

    def model(self, generation: int) -> Toy:
        """The whole torch encoder with a generation's weights."""
        model = Toy()
        model.load_state_dict(torch.load(self.state / "weights" / f"{generation:05d}.pt", weights_only=True))
        return model

    def status(self) -> dict:
        """What the server says of itself, once it has the time to."""

        def answered():
            with contextlib.suppress(LinkError):
                return self.ask(lambda hub: hub.server_status())
            return None

        return until(answered, "the server's status")

    def counted(self, device: str) -> int:
        """Windows of a device in the server's ledger."""
        return self.status()["windows"].get(device, 0)


class Device:
    """A device process with its own state, results and report."""

    def __init__(
        self,
        directory: Path,
        broker: Server | str,
        name: str,
        source: Path,
        *options: object,
        script: Path | None = None,
    ) -> None:
        self._results, self._report = directory / f"{name}.jsonl", directory / f"{name}.json"
        for left in (self._results, self._report):
            left.unlink(missing_ok=True)
        url = broker if isinstance(broker, str) else broker.url
        self.process = Process(
            directory / f"{name}.log", "edge", "run", "--broker", url, "--source", source, "--device", name,
            "--state", directory / f"{name}-state", "--results", self._results, "--report", self._report, "-v",
            *options, script=script,
        )  # fmt: skip

    def results(self) -> list[dict]:
        """Results so far, in order of windows; a line that is being written is left out."""
        lines = self._results.read_text().splitlines() if self._results.exists() else []
        found = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return sorted(found, key=lambda result: result["window"])

    def wait_for_results(self, count: int, timeout_s: float = PATIENCE_S) -> None:
        until(lambda: len(self.results()) >= count or not self.process.running, f"{count} results", timeout_s)

    def wait_for_cut(self, cut: str, timeout_s: float = PATIENCE_S) -> None:
        until(lambda: any(r["cut"] == cut for r in self.results()), f"a window at cut {cut}", timeout_s)

    def kill_without_a_broker(self, server: Server, results: int) -> None:
        """Let the broker stand still until there are so many results, whose frames are spooled, and kill the device."""
        server.signal_broker(signal.SIGSTOP)
        try:
            self.wait_for_results(results)
            self.process.signal(signal.SIGKILL)
        finally:
            server.signal_broker(signal.SIGCONT)

    def finish(self, timeout_s: float = PATIENCE_S) -> dict:
        """Wait for the end; the report."""
        self.process.finish(timeout_s)
        return json.loads(self._report.read_text())


def stored(link, message_id, window, frame, timeout_s=10.0):
    """Send a frame; what the broker says of it, as a future."""
    future = asyncio.get_running_loop().create_future()

    def on_stored(said):
        if isinstance(said, LinkError):
            future.set_exception(said)
        else:
            future.set_result(said)

    link.send(message_id, window, frame, on_stored, timeout_s)
    return future


def next_generation(server, path, number, key=None):
    """The server's first generation with other weights in one block, signed with its key unless another is given."""
    base = open_bundle(server.state / "generations" / "00001")
    tensors = {tensor: value.numpy() for tensor, value in server.model(1).state_dict().items()}
    tensors["two.0.weight"] = tensors["two.0.weight"] * (1 + number / 100)
    windows = windows_of(write_wav(path.with_suffix(".wav"), 2.0, seed=12))
    return recompile(base, tensors, path, generation=number, windows=windows, reference=None, key=key or server.key)


def add_generation(server, number):
    """Compile one into the server's state, as a server does that is killed before it has released it."""
    base = open_bundle(server.state / "generations" / "00001")
    tensors = {tensor: value.numpy() for tensor, value in server.model(1).state_dict().items()}
    tensors["two.0.weight"] = tensors["two.0.weight"] * (1 + number / 10)
    tensors["projection.weight"] = tensors["projection.weight"] + number / 10
    windows = windows_of(write_wav(server.directory / "calibration.wav", 2.0, seed=12))
    state = ServerState(server.state)
    bundle = recompile(
        base, tensors, state.bundle_path(number), generation=number, windows=windows, reference=None, key=server.key
    )
    state.save_weights(number, tensors)
    return bundle


def restart(server, *options):
    server.process.signal(signal.SIGTERM)
    server.start(*options)


def until_it_runs(device, generation):
    """Wait for a result of a generation."""
    until(lambda: any(r["generation"] == generation for r in device.results()), f"{generation} runs")
