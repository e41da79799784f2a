"""Measures, for one fault at a time, how soon a server reports it and how soon it serves again by itself.

    python -m tools.service_faults encoder.pt bundle/ [--only disk]

A separate server with its own broker serves a frame every quarter of a second, and /healthz is polled all the time.
Prints for each fault the seconds until it is reported, and those from the removal of its cause (the disk has room, the
broker continues) until the next frame is answered. Exits with 1 if a fault was reported after more than 10 s, or
service came back after more than 60 s. The full disk needs root on Linux, for a file system of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import click
from nats.aio.client import Client
from nats.aio.msg import Msg

from runtime_edge.base.aio import cancel_all
from runtime_edge.base.broker_errors import BROKER_ERRORS, disconnect
from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import open_bundle
from runtime_server.harness.ports import free_port
from runtime_server.harness.processes import Children, wait_for_line
from runtime_server.telemetry.service_watch import TOLD_WITHIN_S
from tools.server_load import RecordedFrames
from tools.small_disk import small_disk

AGAIN_S = 60.0
_FRAME_S, _ASK_S = 0.25, 0.1
_PATIENCE_S = 180.0
_HELD_S = 15.0
"""How long a fault lasts before it is undone, so that all parts run into it."""
_DISK_MB = 96


@dataclass
class Observed:
    """The reports and answers of a server that is polled all the time."""

    troubles: list[str] = field(default_factory=list)
    """The current troubles."""
    answered: set[int] = field(default_factory=set)
    """The answered windows."""
    sent: int = 0
    """The last window that was sent."""


class FaultyServer:
    """A server and its broker, whose files and processes can be damaged."""

    def __init__(self, state: Path, port: int, health_port: int, frames: RecordedFrames) -> None:
        self.state, self.port, self.health_port = state, port, health_port
        self.client, self.observed, self._frames = Client(), Observed(), frames
        self.device = frames.devices[0]

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Send frames and poll /healthz while the context lasts."""
        await self.client.connect(f"nats://127.0.0.1:{self.port}", max_reconnect_attempts=-1, reconnect_time_wait=1,
                                  error_cb=_ignore)  # fmt: skip
        await self.client.subscribe(f"{subjects.inbox(self.device)}.bulk.>", cb=self._on_answer)
        tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._ask())]
        try:
            yield
        finally:
            await cancel_all(tasks)
            await disconnect(self.client)

    async def _on_answer(self, message: Msg) -> None:
        self.observed.answered.add(int(message.subject.rpartition(".")[2]))

    async def _send(self) -> None:
        while True:
            window, frame, headers = self._frames.message(self.device)
            self.observed.sent = window
            with contextlib.suppress(*BROKER_ERRORS):
                await self.client.publish(subjects.frames(self.device), frame, headers=headers)
            await asyncio.sleep(_FRAME_S)

    async def _ask(self) -> None:
        while True:
            self.observed.troubles = await asyncio.to_thread(self._troubles)
            await asyncio.sleep(_ASK_S)

    def _troubles(self) -> list[str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/healthz", timeout=5.0):
                return []
        except urllib.error.HTTPError as exc:
            told: list[str] = json.loads(exc.read())["troubles"]
            return told

    def signal_broker(self, number: signal.Signals) -> None:
        """Send a signal to the broker's process."""
        os.kill(int((self.state / "broker" / "broker.pid").read_text()), number)

    def damage(self, pattern: str) -> None:
        """Fill files of the frames' stream with random bytes, and kill the broker before it notices."""
        self.signal_broker(signal.SIGSTOP)
        for path in self.state.rglob(f"{subjects.STREAM}/{pattern}"):
            path.write_bytes(os.urandom(path.stat().st_size))
        self.signal_broker(signal.SIGKILL)


async def _ignore(exc: Exception) -> None:
    """Ignore an error: the library reports every failure to reconnect."""


async def _nothing(server: FaultyServer) -> None:
    """Undo nothing: the server repairs this itself."""


async def _consumer(server: FaultyServer) -> None:
    consumer = f"server-{subjects.partition(server.device)}"
    await server.client.jetstream().delete_consumer(subjects.STREAM, consumer)


async def _stream(server: FaultyServer) -> None:
    await server.client.jetstream().delete_stream(subjects.STREAM)


async def _fill_disk(server: FaultyServer) -> None:
    with (server.state / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 12))


async def _empty_disk(server: FaultyServer) -> None:
    (server.state / "ballast").unlink()


def _on_broker(number: signal.Signals) -> Callable[[FaultyServer], Awaitable[None]]:
    async def send(server: FaultyServer) -> None:
        server.signal_broker(number)

    return send


def _damage(pattern: str) -> Callable[[FaultyServer], Awaitable[None]]:
    async def damage(server: FaultyServer) -> None:
        server.damage(pattern)

    return damage


FAULTS = {
    "consumer": ("the consumer is deleted", _consumer, _nothing),
    "consumer-file": ("the consumer's file is damaged", _damage("obs/*/meta.inf"), _nothing),
    "stream": ("the stream is deleted", _stream, _nothing),
    "stream-file": ("the stream's description is damaged", _damage("meta.inf"), _nothing),
    "frames-file": ("the stored frames are damaged", _damage("msgs/1.blk"), _nothing),
    "killed": ("the broker is killed", _on_broker(signal.SIGKILL), _nothing),
    "silent": ("the broker stands still", _on_broker(signal.SIGSTOP), _on_broker(signal.SIGCONT)),
    "disk": ("the disk is full", _fill_disk, _empty_disk),
}
"""By name: a description, the function that causes the fault, and the one that undoes it once it is reported."""


async def measure(server: FaultyServer, name: str) -> tuple[float | None, float, str]:
    """Seconds until a fault was reported (None: repaired before), seconds until service came back, and the report."""
    _, harm, undo = FAULTS[name]
    observed, began = server.observed, time.monotonic()
    await harm(server)
    first = observed.sent + 1
    told: float | None = None
    words = "mended before it was told"
    await _until(lambda: bool(observed.troubles) or (undo is _nothing and max(observed.answered, default=0) > first))
    if observed.troubles:
        told, words = time.monotonic() - began, observed.troubles[0]
    if undo is not _nothing:
        await asyncio.sleep(_HELD_S)
    await undo(server)
    free, after = time.monotonic(), observed.sent
    await _until(lambda: max(observed.answered, default=0) > after and not observed.troubles)
    again = time.monotonic() - (began if undo is _nothing else free)
    return told, again, words


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise click.ClickException(f"nothing for {_PATIENCE_S:.0f} s")
        await asyncio.sleep(0.02)


async def run(encoder: Path, bundle: Path, only: str | None) -> int:
    """Measure all faults one after the other; returns 1 if one took too long."""
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory) / "server"
        state.mkdir()
        with small_disk(state, _DISK_MB) as small:
            names = [only] if only else [name for name in FAULTS if name != "disk" or small]
            frames = RecordedFrames(open_bundle(bundle), 1, devices=1, windows=8)
            server = FaultyServer(state, free_port(), free_port(), frames)
            async with Children(Path(directory)) as children:
                child = await children.start(
                    "server", "server", "run", str(encoder), str(bundle), "--state", str(state), "--no-training", "-v",
                    "--port", str(server.port), "--metrics-port", str(server.health_port),
                )  # fmt: skip
                await wait_for_line(child, "serving generation", _PATIENCE_S)
                async with server.watched():
                    for name in names:
                        after = server.observed.sent
                        await _until(lambda after=after: max(server.observed.answered, default=0) > after)  # type: ignore[misc]
                        told, again, words = await measure(server, name)
                        seen = "  -   " if told is None else f"{told:4.1f} s"
                        print(f"{FAULTS[name][0]:36} told {seen}, again {again:4.1f} s: {words}", flush=True)
                        failed |= (told or 0.0) > TOLD_WITHIN_S or again > AGAIN_S
    return int(failed)


def main() -> int:
    """Measure one fault or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("encoder", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--only", choices=sorted(FAULTS))
    options = parser.parse_args()
    return asyncio.run(run(options.encoder, options.bundle, options.only))


if __name__ == "__main__":
    sys.exit(main())
