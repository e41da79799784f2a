"""The demo's child processes: the real `ssc`, started, watched and stopped."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from runtime_edge.errors import CheckFailed

_STOP_TIMEOUT_S = 20.0
DEVICE = (sys.executable, "-m", "runtime_server.harness.child")
"""The start of a device's command line; its own options come before those of `ssc`."""
SSC = (sys.executable, "-c", "from streamsplit_compile.cli.main import main; main()")


class Child:
    """One running `ssc` command whose output goes to a log file."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name, self.process, self.log = name, process, log

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet."""
        return self.process.returncode is None

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "no output"

    async def finish(self, timeout_s: float) -> None:
        """Wait until it ends. Raises CheckFailed if it fails or takes too long."""
        try:
            code = await asyncio.wait_for(self.process.wait(), timeout_s)
        except asyncio.TimeoutError:
            raise CheckFailed(f"{self.name}: still running after {timeout_s:.0f} s; see {self.log}") from None
        if code != 0:
            raise CheckFailed(f"{self.name}: ended with exit code {code}: {self.last_words()}")

    async def stop(self) -> None:
        """Ask it to stop; kill it if it does not."""
        if not self.running:
            return
        self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), _STOP_TIMEOUT_S)
        except asyncio.TimeoutError:
            self.process.kill()
            await self.process.wait()


class Children:
    """All processes of a demo; those still running at the end are stopped, the last started first."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: list[Child] = []

    async def start(self, name: str, *arguments: str, launcher: Sequence[str] = SSC, piped: bool = False) -> Child:
        """Start `ssc` with arguments; with `piped`, this process can use its standard input and output."""
        log = self._logs / f"{name}.log"
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *launcher,
                *arguments,
                stdin=asyncio.subprocess.PIPE if piped else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if piped else output,
                stderr=output,
                env=environment,
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    async def run(self, name: str, *arguments: str, timeout_s: float = 120.0) -> None:
        """Start `ssc` and wait until it ends. Raises CheckFailed."""
        await (await self.start(name, *arguments)).finish(timeout_s)

    async def __aenter__(self) -> Children:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in reversed(self._children):
            await child.stop()


async def wait_for_line(child: Child, text: str, timeout_s: float) -> None:
    """Wait until its log contains `text`. Raises CheckFailed if it ends first or takes too long."""
    deadline = time.monotonic() + timeout_s
    while text not in child.log.read_text(errors="replace"):
        if not child.running or time.monotonic() > deadline:
            raise CheckFailed(f"{child.name}: {child.last_words()}")
        await asyncio.sleep(0.1)
