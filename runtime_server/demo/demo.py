"""Play the demo: compile, serve, stream from devices on shaped links, swap a table, release, report."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from runtime_edge.errors import CheckFailed, SscError
from runtime_server.broker.hub import Hub
from runtime_server.demo.demo_page import write_report
from runtime_server.demo.demo_scenario import HOP_S, DemoDevice, devices, share_audio
from runtime_server.demo.demo_summary import Evidence, check_summary, summarise
from runtime_server.harness.ports import free_port
from runtime_server.harness.processes import DEVICE, Child, Children, wait_for_line
from runtime_server.harness.shaper import Shaper

_START_S = 60.0
_SETTLE_S = 30.0
"""By then the server has counted what was in flight when the last device ended."""
_COMPILES = 4.0
"""Streaming lasts as long as so many compiles at least: a machine that compiles slowly also trains and swaps slowly."""


@dataclass(frozen=True)
class DemoConfig:
    """Settings of `ssc demo`."""

    audio: Path | None
    out: Path
    encoder: str = "resnet18"
    cuts: str = "auto"
    seconds: float = 110.0
    release_steps: int = 6
    seed: int = 0
    quiet: bool = False


async def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Run it; returns the summary, which is also in `summary.json` of the report.

    Raises CheckFailed when a process fails or something the demo promises does not hold; the report is written
    all the same when there is anything to report.
    """
    work = Path(tempfile.mkdtemp(prefix="ssc-demo-"))
    try:
        evidence = await _play(config, work)
        summary = summarise(evidence)
        write_report(config.out, summary, evidence)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    check_summary(summary)
    return summary


async def _play(config: DemoConfig, work: Path) -> Evidence:
    began = time.monotonic()
    names = [device.name for device in devices(config.seconds)]
    audio, sources = share_audio(config.audio, names, work, config.seconds, config.seed)
    say = _Narrator(config.quiet, began)
    async with Children(work) as children:
        say(f"audio: {audio}")
        compile_s = await _compile(children, config, work, sources, say)
        config = replace(config, seconds=max(config.seconds, _COMPILES * compile_s))
        plan, port = devices(config.seconds), free_port()
        server = await _start_server(children, config, work, sources, port, say)
        shapers = [Shaper(port, device.phases, device.one_way_ms) for device in plan]
        for shaper in shapers:
            await shaper.start()
        hub = Hub(f"nats://127.0.0.1:{port}", "demo")
        try:
            named = ", ".join(f"{device.name} ({device.target})" for device in plan)
            say(f"streaming for {config.seconds:.0f} s from {named}")
            running = [
                await _start_device(children, config, work, device, sources[device.name], shaper)
                for device, shaper in zip(plan, shapers, strict=True)
            ]
            await hub.connect()
            streamed = await _first_results(running, work)
            for shaper in shapers:
                shaper.begin()
            swap = asyncio.create_task(_swap_table(children, config, work, plan, port, say))
            watch = asyncio.create_task(_watch(hub, plan, shapers, say))
            try:
                await asyncio.gather(*(child.finish(config.seconds + 60.0) for child in running))
                swapped_at = await swap
            finally:
                swap.cancel()
                watch.cancel()
                await asyncio.gather(swap, watch, return_exceptions=True)
            status = await _counted(hub, work, plan)
        finally:
            await hub.close()
            for shaper in shapers:
                await shaper.stop()
        await server.stop()
        say("writing the report")
        return Evidence.collect(work, plan, audio, status, streamed, swapped_at, time.monotonic() - began)


async def _compile(
    children: Children, config: DemoConfig, work: Path, sources: dict[str, Path], say: _Narrator
) -> float:
    """Make an encoder and its bundle; returns how many seconds the compile took."""
    encoder = str(work / "encoder.pt")
    await children.run("encoder", "encoder", "new", config.encoder, "-o", encoder)
    say(f"compiling {config.encoder} for rpi4 and m2")
    started = time.monotonic()
    await children.run(
        "compile", "compile", encoder, "--targets", "rpi4,m2", "-o", str(work / "bundle"),
        "--cuts", config.cuts, "--calibrate", str(next(iter(sources.values()))), "--seed", str(config.seed),
    )  # fmt: skip
    return time.monotonic() - started


async def _start_server(
    children: Children, config: DemoConfig, work: Path, sources: dict[str, Path], port: int, say: _Narrator
) -> Child:
    say("starting the broker and the server")
    server = await children.start(
        "server", "server", "run", str(work / "encoder.pt"), str(work / "bundle"), "--state", str(work / "server"),
        "--port", str(port), "--calibrate", str(next(iter(sources.values()))),
        "--release-steps", str(config.release_steps), "--release-least-s", "0", "--seed", str(config.seed), "-v",
    )  # fmt: skip
    await wait_for_line(server, "serving generation", _START_S)
    return server


async def _start_device(
    children: Children, config: DemoConfig, work: Path, device: DemoDevice, source: Path, shaper: Shaper
) -> Child:
    # A device is a machine of its own: the processors here also run the server, its training and the other devices.
    return await children.start(
        device.name, "--alone", "yes",
        "edge", "run", "--broker", f"nats://127.0.0.1:{shaper.port}", "--target", device.target,
        "--source", str(source), "--loop", "--device", device.name, "--state", str(work / device.name),
        "--max-windows", str(int(config.seconds / HOP_S)), "--results", str(work / f"{device.name}.jsonl"),
        "--report", str(work / f"{device.name}.json"), "--seed", str(config.seed), "-v",
        launcher=DEVICE,
    )  # fmt: skip


async def _first_results(running: list[Child], work: Path) -> float:
    """Until every device has finished a window; returns when, s since the epoch. Raises CheckFailed."""
    deadline = time.monotonic() + _START_S
    for child in running:
        results = work / f"{child.name}.jsonl"
        while not results.exists() or not results.stat().st_size:
            if not child.running or time.monotonic() > deadline:
                raise CheckFailed(f"{child.name}: {child.last_words()}")
            await asyncio.sleep(0.1)
    return time.time()


async def _counted(hub: Hub, work: Path, plan: list[DemoDevice]) -> dict[str, Any]:
    """The server's status once it has counted all that the broker acknowledged; as it is when that takes too long."""
    deadline = time.monotonic() + _SETTLE_S
    sent = {device.name: json.loads((work / f"{device.name}.json").read_bytes())["windows_acked"] for device in plan}
    while True:
        status: dict[str, Any] = await hub.server_status()
        behind = any(status["windows"].get(name, 0) < windows for name, windows in sent.items())
        if not behind or time.monotonic() > deadline:
            return status
        await asyncio.sleep(0.1)


async def _swap_table(
    children: Children, config: DemoConfig, work: Path, plan: list[DemoDevice], port: int, say: _Narrator
) -> float:
    """Half-way, give one device a table that was trained to care less for energy; returns when, s since the epoch."""
    (device,) = [device for device in plan if device.swapped]
    table = str(work / "table.json")
    await children.run(
        "splitter-train", "splitter", "train", str(work / "bundle"), "--target", device.target,
        "--eta", "0", "--traces", "lte,outages", "-o", table,
    )  # fmt: skip
    await asyncio.sleep(config.seconds * 0.45)
    await children.run(
        "splitter-push", "splitter", "push", table, "--device", device.name,
        "--broker", f"nats://127.0.0.1:{port}", "--key", str(work / "server" / "signing.key"),
    )  # fmt: skip
    say(f"pushed another splitter table to {device.name}")
    return time.time()


async def _watch(hub: Hub, plan: list[DemoDevice], shapers: list[Shaper], say: _Narrator) -> None:
    """A line now and then: links, windows, bytes, generation."""
    while True:
        await asyncio.sleep(5.0)
        with contextlib.suppress(SscError):
            reports, status = await hub.presence(), await hub.server_status()
            parts = []
            for device, shaper in zip(plan, shapers, strict=True):
                report: dict[str, Any] = reports.get(device.name, {})
                captured, acked = report.get("windows_captured", 0), report.get("windows_acked", 0)
                parts.append(f"{device.name} {acked}/{captured} acked @{shaper.uplink_mbps():g} Mbit/s")
            say(f"{' · '.join(parts)} · generation {status['generation']}, {status['training_steps']} steps")


class _Narrator:
    """Says what happens, with the seconds since the start."""

    def __init__(self, quiet: bool, began: float) -> None:
        self._quiet, self._began = quiet, began

    def __call__(self, text: str) -> None:
        if not self._quiet:
            click.echo(f"[{time.monotonic() - self._began:5.1f} s] {text}", err=True)
