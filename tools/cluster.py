"""Runs a cluster of brokers and a server of several ranks on this machine, which can be killed at will.

    brokers = Brokers(directory, 3)
    await brokers.start()
    server = RankedServer(directory, encoder, bundle, brokers, world=2)
    await server.ready()
    server.kill(1)                  # torchrun restarts the ranks
    brokers.kill(0)                 # this module restarts the broker

It uses real nats-server processes and a real torchrun, and signals only its own processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from runtime_edge.base.aio import cancel_all
from runtime_edge.errors import LinkError
from runtime_server.broker.broker_process import Broker, ClusterConfig
from runtime_server.broker.hub import Hub
from runtime_server.harness.ports import free_ports

_READY_S = 120.0
_STOP_S = 60.0


class Brokers:
    """Brokers in a cluster, each with its own store; one that dies is restarted after a second."""

    def __init__(self, directory: Path, count: int = 3) -> None:
        ports = free_ports(2 * count)
        clients, routes = ports[:count], [f"127.0.0.1:{port}" for port in ports[count:]]
        self.each = []
        for place, port in enumerate(clients):
            others = tuple(route for route in routes if route != routes[place])
            cluster = ClusterConfig(f"b{place + 1}", ports[count + place], others) if count > 1 else None
            self.each.append(Broker(directory / f"broker-{place + 1}", port=port, cluster=cluster))
        self.url = ",".join(broker.url for broker in self.each)
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start all brokers. Raises LinkError."""
        for broker in self.each:
            await broker.start()
        self._keepers = [asyncio.create_task(broker.keep_running()) for broker in self.each]

    async def stop(self) -> None:
        """Stop all brokers."""
        await cancel_all(self._keepers)
        for broker in self.each:
            await broker.stop()

    def process(self, place: int) -> psutil.Process | None:
        """The process of one broker; None if it is not running."""
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            found = psutil.Process(int((self.each[place].state / "broker.pid").read_text()))
            return found if found.name().startswith("nats-server") else None
        return None

    def kill(self, place: int) -> bool:
        """Kill one broker with SIGKILL; returns whether it was running."""
        return _kill(self.process(place))


class RankedServer:
    """`torchrun -m runtime_server` with its log in `server.log` and its state in `server`."""

    def __init__(
        self, directory: Path, encoder: Path, bundle: Path, brokers: Brokers, world: int, *options: object
    ) -> None:
        self.world, self.state, self.log = world, directory / "server", directory / "server.log"
        self._hub_url, self._replicas = brokers.url, min(3, len(brokers.each))
        launcher = [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nproc-per-node", world, "--max-restarts", 1_000_000, "--monitor-interval", 0.2),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_ports(1)[0]}"),
        ]
        run = ["-m", "runtime_server", encoder, bundle, "--state", self.state, "--broker", brokers.url]
        self._command = [*launcher, *run, "--replicas", self._replicas, "-v", *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it without waiting."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                list(map(str, self._command)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
            )

    async def ready(self) -> dict[str, Any]:
        """Start it and wait until every rank answers; returns the status then. Raises LinkError."""
        self.start()
        deadline = time.monotonic() + _READY_S
        while True:
            with contextlib.suppress(LinkError):
                status = await self.status()
                if not any(rank.get("missing") for rank in status.get("ranks", [])):
                    return status
            if time.monotonic() > deadline or self._process is None or self._process.poll() is not None:
                raise LinkError(f"the server is not ready: {self.log.read_text(errors='replace')[-2000:]}")
            await asyncio.sleep(0.2)

    async def status(self) -> dict[str, Any]:
        """The status that `ssc server status` shows. Raises LinkError."""
        async with Hub(self._hub_url, "fleet") as hub:
            return await hub.server_status()

    def processes(self) -> dict[int, psutil.Process]:
        """The processes of the ranks that are running now."""
        found = {}
        with contextlib.suppress(psutil.Error):
            assert self._process is not None
            for child in psutil.Process(self._process.pid).children():
                with contextlib.suppress(psutil.Error, KeyError):
                    if "runtime_server" in child.cmdline():
                        found[int(child.environ()["RANK"])] = child
        return found

    def kill(self, rank: int) -> bool:
        """Kill one rank with SIGKILL; returns whether it was running."""
        return _kill(self.processes().get(rank))

    async def stop(self) -> int:
        """Send SIGTERM to torchrun, which passes it on; returns its exit status. Processes that stay are killed."""
        assert self._process is not None
        ranks = self.processes().values()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(self._process.wait, _STOP_S)
        finally:
            for process in [*ranks, psutil.Process(self._process.pid)] if self._process.poll() is None else ranks:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            await asyncio.to_thread(self._process.wait)


def _kill(process: psutil.Process | None) -> bool:
    if process is None:
        return False
    with contextlib.suppress(psutil.Error):
        process.kill()
        return True
    return False
