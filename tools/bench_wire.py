"""Measures the bytes on a device's interface beyond payload and embedding, in both directions, for each way of sending.

    python -m tools.bench_wire [--quick] [--seconds 120] [--only prompt,packed] [--no-publish]

A real device, server and broker, with credentials, run in two network namespaces joined by a virtual cable (Linux,
root). Bytes are the kernel's counts for the device's interface, including every header from Ethernet upwards, TCP
acknowledgements and heartbeats. The contents of frames and replies are read on the broker's side. The waveform is a
synthetic soundscape, unless recordings are given with --audio or SSC_TEST_AUDIO.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile
from nats.aio.msg import Msg

from runtime_edge.base.files import write_atomic
from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.credentials import Address
from runtime_edge.formats.records.table import LOCAL, SplitterTable
from runtime_edge.formats.wire import decode_frame, decode_replies
from runtime_server.broker.access import Access
from runtime_server.broker.hub import Hub
from runtime_server.harness.network import DEVICE_LINK, SERVER_ADDRESS, Network, Traffic, socket_in
from runtime_server.harness.ports import free_port
from runtime_server.harness.processes import Child, Children, wait_for_line
from runtime_server.harness.relay import Relay
from runtime_server.lab.policy_arms import always
from runtime_server.lab.session import ResultLines
from streamsplit_compile.bundle.soundscape import soundscape
from tools.bench_edge import compiled
from tools.benchmarks import Section, publish, show
from tools.wire_parts import Parts

ENCODER, TARGET = "mn", "x86-64"
_CHILD = (sys.executable, "-m", "runtime_server.harness.child")
_START_S = 90.0
_WARM_WINDOWS = 50
"""Windows of warm-up, until the first reports, which come faster than the others, have been sent."""
_AUDIO = "SSC_TEST_AUDIO"
"""Variable that names the folder of recordings."""


@dataclass(frozen=True)
class Mode:
    """One way of sending."""

    name: str
    options: tuple[str, ...]
    """Options of `ssc edge run`."""
    goals: tuple[float | None, float | None]
    """Bytes a window beyond payload and embedding, up and down."""
    ships: bool = True


MODES = (
    Mode("prompt", ("--deadline-ms", "400"), (330, 350)),
    Mode("packed", ("--deadline-ms", "2000"), (120, 110)),
    Mode("kept", ("--min-cut", LOCAL), (30, 30), ships=False),
)

ARMS = ("prompt", "prompt-plain", "packed", "packed-plain", "kept", "hour")
"""Arms that ship a cut's bottleneck; those with `plain` ship its activation in int8."""


@dataclass
class Contents:
    """The contents of frames and replies, read on the broker's side."""

    messages: int = 0
    windows: int = 0
    payload: int = 0
    frames: int = 0
    """Bytes of frames, payloads included."""
    replies: int = 0
    answers: int = 0
    embeddings: int = 0
    mixtures: int = 0
    reply_bytes: int = 0
    """Bytes of replies, embeddings and mixtures included."""
    unreadable: int = 0

    async def on_frame(self, message: Msg) -> None:
        """Count a frame on its way to the stream."""
        windows = decode_frame(message.data)
        self.messages += 1
        self.windows += len(windows)
        self.frames += len(message.data)
        self.payload += sum(len(payload) for _, payload in windows)

    async def on_reply(self, message: Msg) -> None:
        """Count a reply on its way to the device; the broker's acknowledgements do not come through here."""
        try:
            replies = decode_replies(message.data)
        except Exception:
            self.unreadable += 1
            return
        self.replies += 1
        self.answers += len(replies)
        self.reply_bytes += len(message.data)
        self.embeddings += sum(len(reply.embedding) for reply in replies)
        self.mixtures += sum(len(reply.mixture) for reply in replies)


@dataclass
class Measured:
    """The traffic of one mode."""

    windows: int
    seconds: float
    traffic: Traffic
    contents: Contents
    up_parts: Counter[str]
    """Bytes of all windows, by their kind."""
    down_parts: Counter[str]

    @property
    def up(self) -> float:
        """Bytes a window beyond payloads."""
        return (self.traffic.up - self.contents.payload) / self.windows

    @property
    def down(self) -> float:
        """Bytes a window beyond embeddings."""
        return (self.traffic.down - self.contents.embeddings) / self.windows

    @property
    def down_mb_hour(self) -> float:
        """All bytes received by the device, MB (1e6) an hour."""
        return self.traffic.down / self.seconds * 3600 / 1e6


class WireBench:
    """`async with WireBench(work, bundle) as bench: await bench.measure(...)`."""

    def __init__(self, work: Path, bundle: Bundle, devices: Sequence[str], *options: str) -> None:
        """`options` are those of the server."""
        self._work, self._bundle, self._devices, self._options = work, bundle, devices, options
        work.mkdir()
        self._network, self._children = Network(), Children(work)
        self._port = free_port()

    async def __aenter__(self) -> WireBench:
        self._network.__enter__()
        try:
            await self._children.__aenter__()
            await self._serve()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._children.__aexit__(None, None, None)
        self._network.__exit__()

    async def _serve(self) -> None:
        state = self._work / "server"
        state.mkdir()
        await self._children.run(
            "add", "server", "device", "add", *self._devices, "--state", str(state), "-o", str(self._work)
        )
        root = self._bundle.path.parent
        server = await self._children.start(
            "server", "server", "run", str(root / "encoder.pt"), str(self._bundle.path), "--state", str(state),
            "--host", SERVER_ADDRESS, "--port", str(self._port), "-v", *self._options,
            launcher=(*self._network.run_in(self._network.server), *_CHILD),
        )  # fmt: skip
        await wait_for_line(server, "serving generation", _START_S)

    async def measure(
        self, name: str, source: Path, seconds: float, options: Sequence[str], table: SplitterTable | None = None
    ) -> Measured:
        """Run a device for `seconds`. It gets `table` and its bundle if one is given, else fetches the server's."""
        relay = Relay((SERVER_ADDRESS, self._port), None, lambda: socket_in(self._network.server))
        await relay.start()
        access = Access(self._work / "server")
        hub = Hub(Address(f"nats://127.0.0.1:{relay.port}", access.credentials), "bench")
        await hub.connect()
        try:
            device = await self._device(hub, name, source, options, table)
            lines = ResultLines(device)
            reading = asyncio.create_task(lines.read())
            try:
                await lines.wait_for(_WARM_WINDOWS, _START_S)
                return await self._watch(hub, name, lines, seconds)
            finally:
                await device.stop()
                await reading
        finally:
            await hub.close()
            await relay.stop()

    async def _device(
        self, hub: Hub, name: str, source: Path, options: Sequence[str], table: SplitterTable | None
    ) -> Child:
        given: list[str] = []
        if table is not None:
            key = minisign.read_secret_key(self._work / "server" / "signing.key")
            await hub.put_table(table, key, name)
            own = self._work / f"{name}-bundle"
            shutil.copytree(self._bundle.path, own)
            file = own / self._bundle.manifest.info.targets[TARGET].table
            file.with_name(f"{file.name}.minisig").unlink(missing_ok=True)
            write_atomic(file, table.to_json())
            given = ["--bundle", str(own)]
        return await self._children.start(
            name, "edge", "run", "--broker", f"nats://{SERVER_ADDRESS}:{self._port}", "--target", TARGET,
            "--source", str(source), "--loop", "--device", name, "--state", str(self._work / name),
            "--credentials", str(self._work / f"{name}.creds"), "--results", "-", "--threads", "1", *given, *options,
            launcher=(*self._network.run_in(self._network.device), *_CHILD), piped=True,
        )  # fmt: skip

    async def _watch(self, hub: Hub, name: str, lines: ResultLines, seconds: float) -> Measured:
        contents = Contents()
        await hub.subscribe("act.>", contents.on_frame)
        await hub.subscribe(f"_INBOX.{name}.>", contents.on_reply)
        with Parts(self._network.device, DEVICE_LINK) as parts:
            before, windows, began = self._network.traffic(), len(lines.heard), time.monotonic()
            await asyncio.sleep(seconds)
        traffic = self._network.traffic().since(before)
        return Measured(
            len(lines.heard) - windows, time.monotonic() - began, traffic, contents, parts.up.copy(), parts.down.copy()
        )


def widest(bundle: Bundle, cut: str) -> str:
    """The action that ships the most channels of a cut's bottleneck."""
    return max(
        (action for action in bundle.table(TARGET).costs if action.cut == cut and action.answer != "exit"),
        key=lambda action: action.width,
    ).name


def smallest_cut(bundle: Bundle) -> str:
    """The cut before the embedding with the smallest activation in int8."""
    cuts = bundle.manifest.info.cuts[1:-1]
    return min(cuts, key=lambda cut: cut.bytes.get("int8", 1 << 40)).name


async def _measure(work: Path, seconds: float, hour_s: float, only: Sequence[str], audio: Path | None) -> Section:
    section = Section("lean", "The wire", f"python -m tools.bench_wire --seconds {seconds:g}", part="wire")
    source = work / "sound" / "sound.wav"
    source.parent.mkdir()
    soundfile.write(source, soundscape(240.0, 16_000, seed=0), 16_000, subtype="PCM_16")
    bundle = compiled(work, ENCODER, formats=("onnx",), calibrate=source.parent)
    plain = smallest_cut(bundle)
    arms = [(mode, widest(bundle, plain)) for mode in MODES]
    arms += [(replace(mode, name=f"{mode.name}-plain"), plain) for mode in MODES if mode.ships]
    arms = [(mode, action) for mode, action in arms if mode.name in only]
    if arms:
        async with WireBench(work / "modes", bundle, [mode.name for mode, _ in arms], "--no-training") as bench:
            for mode, action in arms:
                table = always(bundle.table(TARGET), action)
                _add(section, mode, action, await bench.measure(mode.name, source, seconds, mode.options, table))
    if "hour" in only:
        async with WireBench(work / "hour", bundle, ["hour"]) as bench:
            hour = await bench.measure("hour", audio or source, hour_s, ())
        what = f"all that comes down to a default device of a default server, MB an hour ({hour.seconds:.0f} s)"
        section.add("down_mb_hour", hour.down_mb_hour, "at most 2", what)
        _detail(section, "default", hour)
    return section


def _add(section: Section, mode: Mode, action: str, measured: Measured) -> None:
    (up, down), name = mode.goals, mode.name.replace("-", "_")
    if mode.ships:
        told = f"bytes a window beyond the payload, {action}"
        section.add(f"wire_up.{name}", measured.up, f"at most {up:g}", told)
        told = f"bytes a window beyond the embedding, {action}"
        section.add(f"wire_down.{name}", measured.down, f"at most {down:g}", told)
    else:
        section.add(f"wire_up.{name}", measured.up, "", "bytes a window that is not shipped")
        section.add(f"wire_down.{name}", measured.down, "", "the same, downwards")
        both = measured.up + measured.down
        section.add(f"wire_{name}", both, f"at most {up:g}", "both ways, heartbeats and all")
    _detail(section, mode.name, measured)


def _detail(section: Section, name: str, measured: Measured) -> None:
    traffic, contents, windows = measured.traffic, measured.contents, measured.windows
    per = 1 / max(windows, 1)
    section.detail(
        f"{name}: windows, seconds; packets a window up, down",
        f"{windows}, {measured.seconds:.0f}; {traffic.up_packets * per:.2f}, {traffic.down_packets * per:.2f}",
    )
    section.detail(
        f"{name}: bytes a window up: all, payload, frame around it",
        f"{traffic.up * per:.0f}, {contents.payload * per:.0f}, {(contents.frames - contents.payload) * per:.1f}",
    )
    section.detail(
        f"{name}: bytes a window down: all, embedding, mixture, reply around them",
        f"{traffic.down * per:.0f}, {contents.embeddings * per:.0f}, {contents.mixtures * per:.1f}, "
        f"{(contents.reply_bytes - contents.embeddings - contents.mixtures) * per:.1f}",
    )
    for way, parts in (("up", measured.up_parts), ("down", measured.down_parts)):
        for part, amount in parts.most_common():
            section.detail(f"{name}, bytes a window {way}: {part}", f"{amount * per:.1f}")
    section.detail(
        f"{name}: messages with windows, windows in them; replies, answers in them, unreadable",
        f"{contents.messages}, {contents.windows}; {contents.replies}, {contents.answers}, {contents.unreadable}",
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half a minute each")
    parser.add_argument("--seconds", type=float, help="of each measurement [default: 240, with --quick 30]")
    parser.add_argument("--hour", type=float, help="seconds of the hour [default: 3600, with --quick 120]")
    parser.add_argument("--only", default=",".join(ARMS), help=f"which of {', '.join(ARMS)}")
    parser.add_argument("--audio", type=Path, default=os.environ.get(_AUDIO), help="recordings for the hour")
    parser.add_argument("--no-publish", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    seconds = options.seconds or (30.0 if options.quick else 240.0)
    hour_s = options.hour or (120.0 if options.quick else 3600.0)
    with tempfile.TemporaryDirectory(prefix="ssc-bench-") as work:
        audio = options.audio and Path(options.audio)
        section = asyncio.run(_measure(Path(work), seconds, hour_s, options.only.split(","), audio))
    (show if options.no_publish else publish)(section)


if __name__ == "__main__":
    main()
