"""Play the demo: compile, serve with the page, stream recordings from devices on shaped links, swap a table, release.

The encoder is the trained one that comes with the package, together with its head.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime_edge.base.aio import cancel_all
from runtime_edge.errors import CheckFailed, SscError
from runtime_edge.formats.records.head import read_head
from runtime_server.broker.hub import Hub
from runtime_server.demo.demo_page import write_report
from runtime_server.demo.demo_recordings import Playlist, Recordings, find_recordings
from runtime_server.demo.demo_scenario import DemoDevice, devices
from runtime_server.demo.demo_summary import Evidence, check_summary, summarise
from runtime_server.demo.heard import Heard, ResultFile, heard
from runtime_server.demo.narrator import Narrator
from runtime_server.harness.ports import free_port
from runtime_server.harness.processes import DEVICE, Child, Children, wait_for_line
from runtime_server.harness.shaper import Shaper

ENCODER, WEIGHTS = "mobilenet_v3_small", "speech-and-sounds"
CACHE = Path(".cache/demo-recordings")
"""Where Debian's recordings are kept, relative to the working directory."""
PAGE_PORT = 8081
LEARN = ("--rho", "1")
"""How much the tables here value a window that the server learns from (`ssc splitter train`)."""
LEARNING_RATE, RELEASE_LEAST_S = "1e-7", "30"
"""The encoder is already trained: with a higher rate, its head would soon label one of these few recordings
differently, and the release would be refused."""
_COMPILE_S, _START_S = 600.0, 180.0
"""Upper bounds for a machine that is busy with other things."""
_SETTLE_S = 30.0
"""By then the server has counted the frames that were in flight when the last device ended."""
_COMPILES, _MOST_S = 4.0, 240.0
"""Streaming lasts this many times as long as the compile, up to a maximum: a machine that compiles slowly also trains
and swaps slowly."""
_BEFORE_S, _AFTER_S = 50.0, 20.0
"""Rough durations of what happens before and after the streaming; only the progress line uses them."""


@dataclass(frozen=True)
class DemoConfig:
    """Settings of `ssc demo`."""

    audio: Path | None
    out: Path
    seconds: float = 110.0
    release_steps: int = 12
    seed: int = 0
    quiet: bool = False
    cache: Path = CACHE


@dataclass(frozen=True)
class _Stage:
    """What all parts of one demo share."""

    config: DemoConfig
    work: Path
    children: Children
    plan: list[DemoDevice]
    recordings: Recordings
    sources: dict[str, tuple[Path, Playlist]]
    say: Narrator
    port: int
    """The broker's port."""
    page: str
    """The page's address."""

    @property
    def broker(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def state(self) -> Path:
        """The server's state directory."""
        return self.work / "server"

    @property
    def encoder(self) -> Path:
        return self.work / "encoder.pt"

    @property
    def head(self) -> Path:
        """The head, which `ssc encoder new` writes beside the encoder."""
        return self.work / "encoder.head.json"


async def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Run the demo; returns the summary, which is also the report's `summary.json`.

    Raises CheckFailed if a process fails or a promise of the demo does not hold; the report is still written if there
    is anything to report.
    """
    say = Narrator(config.quiet)
    with tempfile.TemporaryDirectory(prefix="ssc-demo-", ignore_cleanup_errors=True) as made:
        say.expect("looking for recordings", _BEFORE_S + config.seconds + _AFTER_S)
        ticking = asyncio.create_task(say.tick())
        try:
            evidence = await _play(config, Path(made), say)
            summary = summarise(evidence)
            write_report(config.out, summary, evidence)
        finally:
            await cancel_all([ticking])
            say.end()
    check_summary(summary)
    return summary


async def _play(config: DemoConfig, work: Path, say: Narrator) -> Evidence:
    began = time.time()
    recordings = await asyncio.to_thread(
        find_recordings, config.audio, config.cache, config.seconds, config.seed, work, say
    )
    say(f"audio: {recordings.what}")
    async with Children(work) as children:
        plan = devices(config.seconds)
        sources = {
            device.name: recordings.playlist(work / "audio" / device.name, config.seed + device.hears)
            for device in plan
        }
        page = f"http://127.0.0.1:{_page_port()}"
        stage = _Stage(config, work, children, plan, recordings, sources, say, free_port(), page)
        compile_s = await _compile(stage)
        seconds = max(config.seconds, min(_COMPILES * compile_s, _MOST_S))
        stage = replace(stage, config=replace(config, seconds=seconds), plan=devices(seconds))
        server = await _start_server(stage)
        say(f"open {page} and see what the devices hear, until the demo ends")
        shapers = [Shaper(stage.port, device.phases, device.one_way_ms) for device in stage.plan]
        hub = Hub(stage.broker, "demo")
        try:
            for shaper in shapers:
                await shaper.start()
            await hub.connect()
            streamed, swapped = await _stream(stage, shapers, hub)
            say.expect("counting what arrived", _AFTER_S)
            status = await _counted(hub, stage)
        finally:
            await hub.close()
            for shaper in shapers:
                await shaper.stop()
        await server.stop()
        say("writing the report")
        return Evidence.collect(
            work, stage.plan, recordings.what, _all_heard(stage), status, (began, streamed, swapped, time.time())
        )


def _page_port() -> int:
    """The page's usual port, or another one if that is taken."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", PAGE_PORT))
        except OSError:
            return free_port()
    return PAGE_PORT


async def _compile(stage: _Stage) -> float:
    """Make the encoder and its bundle; returns how many seconds compiling took."""
    work, run = stage.work, stage.children.run
    await run("encoder", "encoder", "new", ENCODER, "--weights", WEIGHTS, "-o", str(stage.encoder))
    stage.say(f"compiling {ENCODER} ({WEIGHTS}) for rpi4 and m2")
    stage.say.expect("compiling the encoder", _BEFORE_S + stage.config.seconds + _AFTER_S)
    started = time.monotonic()
    await run(
        "compile", "compile", str(stage.encoder), "--targets", "rpi4,m2", "-o", str(work / "bundle"),
        "--calibrate", str(stage.sources["pi-wifi"][0]), "--seed", str(stage.config.seed),
        timeout_s=_COMPILE_S,
    )  # fmt: skip
    return time.monotonic() - started


async def _start_server(stage: _Stage) -> Child:
    """Start the server with its page."""
    config = stage.config
    stage.say("starting the broker and the server")
    server = await stage.children.start(
        "server", "server", "run", str(stage.encoder), str(stage.work / "bundle"), "--state", str(stage.state),
        "--port", str(stage.port), "--web", stage.page.rpartition(":")[2], "--training",
        "--calibrate", str(stage.sources["pi-wifi"][0]), "--release-steps", str(config.release_steps),
        "--release-least-s", RELEASE_LEAST_S, "--learning-rate", LEARNING_RATE, "--seed", str(config.seed), "-v",
    )  # fmt: skip
    await wait_for_line(server, "serving generation", _START_S)
    return server


async def _give_head(stage: _Stage) -> None:
    """Push the encoder's head to all devices; labelled recordings judge releases by it."""
    judges = stage.recordings.judges(read_head(stage.head).labels, stage.work / "judges.csv")
    await stage.children.run(
        "label", "server", "label", *([str(judges)] if judges else []), "--head", str(stage.head), "--push",
        "--state", str(stage.state), "--broker", stage.broker,
    )  # fmt: skip


async def _train_table(stage: _Stage, target: str, name: str, *reward: str) -> Path:
    """Train a splitter table for a target."""
    table = stage.work / f"{name}.json"
    await stage.children.run(
        name, "splitter", "train", str(stage.work / "bundle"), "--target", target, *reward, "-o", str(table)
    )
    return table


async def _push_table(stage: _Stage, table: Path, *whom: str) -> None:
    await stage.children.run(
        f"push-{table.stem}", "splitter", "push", str(table), *whom,
        "--broker", stage.broker, "--key", str(stage.state / "signing.key"),
    )  # fmt: skip


async def _give_tables(stage: _Stage) -> float:
    """Push tables that ship more to all devices, and half-way another one to one device; returns when, s since 1970.

    An encoder this small runs entirely on the device unless the server's learning counts for more. The second table was
    trained to care less about energy.
    """
    for target in sorted({device.target for device in stage.plan}):
        await _push_table(stage, await _train_table(stage, target, f"table-{target}", *LEARN))
    (device,) = [device for device in stage.plan if device.swapped]
    table = await _train_table(stage, device.target, "table", *LEARN, "--eta", "0", "--traces", "lte,outages")
    await asyncio.sleep(stage.config.seconds * 0.4)
    await _push_table(stage, table, "--device", device.name)
    stage.say(f"pushed another splitter table to {device.name}")
    return time.time()


async def _stream(stage: _Stage, shapers: list[Shaper], hub: Hub) -> tuple[float, float]:
    """Stream until the last device has ended; returns when streaming began and the table was swapped, s since 1970."""
    config, say = stage.config, stage.say
    named = ", ".join(f"{device.name} ({device.target})" for device in stage.plan)
    say(f"streaming for {config.seconds:.0f} s from {named}")
    say.expect(stage.page, config.seconds + _AFTER_S)
    running = [await _start_device(stage, device, shaper) for device, shaper in zip(stage.plan, shapers, strict=True)]
    telling = [asyncio.create_task(_tell_heard(stage)), asyncio.create_task(_tell_releases(hub, stage))]
    finishing = [child.finish(config.seconds + _START_S) for child in running]
    begun, swapped = asyncio.create_task(_begin(running, shapers, stage)), asyncio.create_task(_give_tables(stage))
    streaming = asyncio.gather(begun, swapped, _give_head(stage), *finishing)
    try:
        await streaming
    finally:
        await cancel_all([streaming, begun, swapped, *telling])
        for task in telling:
            if not task.cancelled():
                task.result()
    return begun.result(), swapped.result()


async def _begin(running: list[Child], shapers: list[Shaper], stage: _Stage) -> float:
    """Once every device has finished a window, start the planned changes of the links; returns when, s since 1970."""
    began = await _first_results(running, stage.work)
    for shaper in shapers:
        shaper.begin()
    return began


async def _start_device(stage: _Stage, device: DemoDevice, shaper: Shaper) -> Child:
    work, name = stage.work, device.name
    # A device is a machine of its own: the processors here also run the server, its training and the other devices.
    return await stage.children.start(
        name, "--alone", "yes",
        "edge", "run", "--broker", f"nats://127.0.0.1:{shaper.port}", "--target", device.target,
        "--source", str(stage.sources[name][0]), "--loop", "--device", name, "--state", str(work / name),
        "--max-windows", str(stage.recordings.windows(stage.config.seconds)), "--results", str(work / f"{name}.jsonl"),
        "--report", str(work / f"{name}.json"), "--seed", str(stage.config.seed), "-v",
        *(("--min-cut", "local") if device.alone else ("--keep-clips", str(work / name / "clips"), "--lend-clips")),
        launcher=DEVICE,
    )  # fmt: skip


async def _first_results(running: list[Child], work: Path) -> float:
    """Wait until every device has finished a window; returns when, s since the epoch. Raises CheckFailed."""
    deadline = time.monotonic() + _START_S
    for child in running:
        results = work / f"{child.name}.jsonl"
        while not results.exists() or not results.stat().st_size:
            if not child.running or time.monotonic() > deadline:
                raise CheckFailed(f"{child.name}: {child.last_words()}")
            await asyncio.sleep(0.1)
    return time.time()


async def _counted(hub: Hub, stage: _Stage) -> dict[str, Any]:
    """The server's status once it has counted all that the broker acknowledged, or after a timeout."""
    deadline = time.monotonic() + _SETTLE_S
    reports = {device.name: json.loads((stage.work / f"{device.name}.json").read_bytes()) for device in stage.plan}
    while True:
        status: dict[str, Any] = await hub.server_status()
        behind = any(status["windows"].get(name, 0) < report["windows_acked"] for name, report in reports.items())
        if not behind or time.monotonic() > deadline:
            return status
        await asyncio.sleep(0.1)


async def _tell_heard(stage: _Stage) -> None:
    """Print a line for each recording that a device has heard to the end."""
    told: set[tuple[str, int]] = set()
    known = read_head(stage.head).labels
    files = {device.name: ResultFile(stage.work / f"{device.name}.jsonl") for device in stage.plan if not device.alone}
    while True:
        for name, file in files.items():
            # In a thread, because this event loop also shapes the devices' links.
            for play in (await asyncio.to_thread(heard, name, file.read(), stage.sources[name][1], known))[:-1]:
                if (name, play.play) not in told:
                    told.add((name, play.play))
                    stage.say(str(play))
        await asyncio.sleep(0.5)


async def _tell_releases(hub: Hub, stage: _Stage) -> None:
    """Print a line for each new generation."""
    generation = 1
    while True:
        await asyncio.sleep(2.0)
        with contextlib.suppress(SscError):
            status: dict[str, Any] = await hub.server_status()
            if status["generation"] > generation:
                generation = status["generation"]
                stage.say(f"the server has trained {status['training_steps']} steps: generation {generation}")


def _all_heard(stage: _Stage) -> dict[str, list[Heard]]:
    """What each device heard, by device."""
    known = read_head(stage.head).labels
    return {
        name: heard(name, ResultFile(stage.work / f"{name}.jsonl").read(), playlist, known)
        for name, (_, playlist) in stage.sources.items()
    }
