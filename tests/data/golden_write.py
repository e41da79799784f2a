"""Writes a small file of every format with the code that is checked out: what later versions must be able to read.

    python -m pytest tests/golden --renew-golden VERSION      writes tests/data/golden/VERSION

`golden_read` says what stands in each; its answers, as this version gives them, are kept as `expected.json`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes.util
import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import example_records
import golden_read
import msgspec
import numpy as np
import torch
from small_tables import make_table
from toys import Tiny
from waiting import eventually

from runtime_edge.audio import Counters
from runtime_edge.audio.wire_streams import AudioStreamEncoder
from runtime_edge.base.aio import cancel_all
from runtime_edge.base.logs import Trouble
from runtime_edge.config import DeviceConfig, LabelRule
from runtime_edge.device.event_sink import EventSink
from runtime_edge.device.sinks import JsonLines
from runtime_edge.errors import FormatError
from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.codec import CutCodec
from runtime_edge.formats.credentials import credentials_file, new_seed
from runtime_edge.formats.records.envelope import Kind, open_record, seal
from runtime_edge.formats.records.head import signature_of
from runtime_edge.formats.records.numbers import RecordNumbers
from runtime_edge.formats.records.release import Release, ReleasedBundle, encode
from runtime_edge.formats.records.table import SplitterTable, StateAxis
from runtime_edge.formats.results import WindowResult
from runtime_edge.formats.wire import Reply, encode_frame, encode_reply
from runtime_edge.inference.prefix import Prefix
from runtime_edge.policy.memory import GaussianMemory
from runtime_edge.policy.online_learner import Learnt
from runtime_edge.sd_notify import Notifier
from runtime_edge.service.heartbeat import Heartbeat
from runtime_edge.service.status import DeviceStatus, UplinkStatus, write_status
from runtime_edge.service.status import EncoderStatus as RunningEncoder
from runtime_edge.system import Health
from runtime_edge.transport.accounting import Accounting, LoopCounts, merged
from runtime_edge.transport.in_memory import InMemoryTransport
from runtime_edge.transport.spool.spool import Spool, SpoolState
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.update_reports import UpdateReports
from runtime_server.broker.access import Access
from runtime_server.ingest import dead_letters
from runtime_server.releases.release_gate import first_model
from runtime_server.releases.rollout import Rollout, RolloutConfig
from runtime_server.state.server_state import ServerState
from runtime_server.state.suspects import Suspects
from runtime_server.suffix.generations import Generations
from runtime_server.training.buffer import TrainingWindow
from runtime_server.training.checkpoint import Checkpoints
from runtime_server.training.trainer import TrainConfig, Trainer
from streamsplit_compile.bundle.bundle_writer import write_table
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder

KEY = minisign.SecretKey(bytes(range(8)), bytes(range(32)))
NOW = 1_700_000_000.0
NUMBER = 1_700_000_000_000
SIGNED: dict[Kind, str] = {"table": "_all.rpi4", "head": "_all.rpi4", "release": "rpi4"}
"""Kinds of records, and the keys they are for."""


def write(directory: Path) -> None:
    """Make a directory with a file of every format, and `expected.json`."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        torch.save(Tiny().state_dict(), Path(work) / "tiny.pt")
        encoder = load_encoder(Path(work) / "tiny.pt", "toys:Tiny")
        options = CompileOptions([load_target("rpi4")], cuts="stem,down,residual", calibration_windows=4, key=KEY)
        bundle = compile_encoder(encoder, options, Path(work) / "bundle")
        write_table(bundle.path, "tables/rpi4.json", _small(bundle.table("rpi4")).to_json(), KEY)
        _server(directory / "server", Path(work) / "server", encoder, bundle)
        bundle = open_bundle(directory / "server" / "generations" / "00001", KEY.public)
        _frames(directory / "frames", bundle)
        _streams(directory / "streams")
        _replies(directory / "replies")
        _records(directory / "records", bundle)
        _device(directory / "device", bundle, directory)
        _dead_letters(directory / "dead_letters.json")
        asyncio.run(_results(directory / "results", Path(work), bundle))
    (directory / "credentials").mkdir()
    creds = credentials_file(new_seed(), "pi-1, added on gateway for the server in /srv/ssc-server")
    (directory / "credentials" / "pi-1.creds").write_bytes(creds)
    shutil.copytree(directory, copy := Path(tempfile.mkdtemp()) / "copy")  # what is opened may change
    expected = {name: read(copy) for name, read in golden_read.FORMATS.items()}
    shutil.rmtree(copy.parent)
    (directory / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


def _small(table: SplitterTable) -> SplitterTable:
    """The table with a single state, in which the third action is best."""
    row = tuple(float(action == 2) for action in range(len(table.actions)))
    axes = (StateAxis(name="bandwidth_mbps", edges=()),)
    return msgspec.structs.replace(table, state=axes, q=(row,))


def _noise(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def _frames(directory: Path, bundle: Bundle) -> None:
    directory.mkdir()
    cuts, prefix = bundle.manifest.info.cuts, Prefix(bundle)
    prefix.start(_noise(1, 1024))
    stem = prefix.advance(1).copy()
    made = [(cut, encoding, kind) for cut, encoding in ((1, "float32"), (1, "float16"), (1, "int8"), (0, "pcm16"))
            for kind in ("heard", "quiet", "noise")]  # fmt: skip
    for window, (cut, encoding, kind) in enumerate(made):
        codec = CutCodec(cuts[cut], encoding)
        heard = stem if cut else 0.5 * np.sin(np.arange(1024, dtype=np.float32))[None]
        values = {"heard": heard, "quiet": 0 * heard, "noise": codec.decode(_incompressible(codec), False)}[kind]
        payload, compressed = codec.encode(values)
        frame = encode_frame(window, 1_700_000_000_000_000_000, 1, cut, encoding, compressed, 0.375, payload)
        (directory / f"{encoding}-{kind}.frame").write_bytes(frame)


def _incompressible(codec: CutCodec) -> bytes:
    """A payload that zstd makes no smaller: finite whatever the encoding, as one bit of a float's exponent is clear."""
    bits = np.random.default_rng(2).integers(0, 1 << 32, codec.raw_bytes // 4, np.uint32)
    clear = {"float32": 0xBFFFFFFF, "float16": 0xBFFFBFFF}.get(codec.encoding, 0xFFFFFFFF)
    return (bits & np.uint32(clear)).astype("<u4").tobytes()


def _streams(directory: Path) -> None:
    directory.mkdir()
    rate, window, hop = golden_read.STREAM
    audio = np.sin(np.arange(window + 2 * hop) * 0.2).astype(np.float32) * 0.5
    for encoding in ("pcm16-stream", "flac", *(["opus"] if ctypes.util.find_library("opus") else [])):
        encoder = AudioStreamEncoder(encoding, rate, window, hop, 16.0)
        for index in range(3):
            payload = encoder.encode(audio[index * hop : index * hop + window], index, alone=False)
            frame = encode_frame(index, 1_700_000_000_000_000_000, 1, 0, encoding, False, 0.5, payload)
            (directory / f"{encoding}-{index}.frame").write_bytes(frame)


def _replies(directory: Path) -> None:
    directory.mkdir()
    embedding = _noise(4, 6).astype("<f2").tobytes()
    memory = GaussianMemory(components=4, dim=6)
    for row in _noise(5, 60, 6):
        memory.update(row)
    replies = {
        "ok": Reply(7, 2, "ok", 1500, embedding),
        "mixture": Reply(8, 2, "ok", 1600, embedding, mixture=memory.to_bytes()),
        "retired": Reply(9, 3, "retired", 40),
        "refused": Reply(10, 3, "refused", 41),
    }
    for name, reply in replies.items():
        (directory / f"{name}.reply").write_bytes(encode_reply(reply))


def _records(directory: Path, bundle: Bundle) -> None:
    directory.mkdir()
    minisign.write_key_pair(KEY, directory / "key")
    table = make_table([(0.5, 1.0, 0.25, 0.0, -1.0), (1.5, 0.0, 0.25, 0.5, -2.0)], metrics={"reward": 1.25})
    (directory / "table.json").write_bytes(table.to_json())
    (directory / "table.json.minisig").write_text(minisign.sign(table.to_json(), KEY, "table:rpi4"))
    (directory / "table.record").write_bytes(seal("table", "_all.rpi4", NUMBER, table.to_json(), KEY))
    head = example_records.head(bundle.manifest.info.encoder.id)
    (directory / "head.json").write_bytes(head.to_json())
    (directory / "head.json.minisig").write_text(signature_of(head.to_json(), KEY))
    (directory / "head.record").write_bytes(seal("head", "_all.rpi4", NUMBER, head.to_json(), KEY))
    stable = ReleasedBundle(generation=1, manifest=bundle.digest, signature="one", rollback=True)
    release = Release(generation=2, manifest="sha256:" + "2" * 64, signature="two", share=0.25, stable=stable, oldest=1)
    (directory / "release.record").write_bytes(seal("release", "rpi4", NUMBER, encode(release), KEY))
    adapted = example_records.adaptation().to_json()
    (directory / "adaptation.json").write_bytes(adapted)
    (directory / "adaptation.record").write_bytes(seal("adaptation", "pi-1.rpi4", NUMBER, adapted, KEY))
    submodel = example_records.submodel(bundle.manifest).to_json()
    (directory / "submodel.json").write_bytes(submodel)
    learnt = Learnt(device="pi-1", target="rpi4", table=table.digest, cells=[(0, 1, 0.125, 12), (1, 4, -0.5, 3)])
    (directory / "learnt.json").write_bytes(learnt.to_json())


def _device(state: Path, bundle: Bundle, files: Path) -> None:
    state.mkdir()
    store = BundleStore(state, None)
    (state / "trusted.pub").write_text(KEY.public.to_text())
    installed = store.install_local(bundle.path)
    store.trials.begin(installed)
    store.trials.prove(installed)
    # Another one was tried, crashed the device, and is not taken again.
    other = Bundle(installed.path, installed.manifest, "sha256:" + "5" * 64, None)
    store.trials.adopt(other)
    store.trials.refuse(other, "the self-test is off by 0.5")
    store.trials.note("update_failed", generation=2, reason="the self-test is off by 0.5")
    table = bundle.table("rpi4")
    (state / "table.json").write_bytes(seal("table", "_all.rpi4", NUMBER, table.to_json(), KEY))
    shutil.copy(files / "records" / "head.record", state / "head.json")
    shutil.copy(files / "records" / "release.record", state / "release.json")
    numbers = RecordNumbers(state / "numbers.json")
    for kind, key in SIGNED.items():
        numbers.accept(
            open_record((state / f"{kind}.json").read_bytes(), kind, key, KEY.public, kind), KEY.public, kind
        )
    learnt = Learnt(device="pi-1", target="rpi4", table=table.digest, cells=[(0, 1, 0.125, 12)])
    (state / "learnt.json").write_bytes(learnt.to_json())
    spool = Spool(state / "spool.db", 1 << 20)
    for index in range(4):
        spool.put(f"pi-1.boot.{index}", index, (files / "frames" / "int8-heard.frame").read_bytes(), 0.25 * index)
    spool.ack(["pi-1.boot.1"])
    spool.close()
    write_status(state, _status(installed))


def _status(bundle: Bundle) -> DeviceStatus:
    accounting, counts = Accounting(captured=20, acked=12, kept_local=3), LoopCounts()
    accounting.dropped["spool_full"] += 2
    counts.cuts |= {"stem": 15, "local": 5}
    for ms in (0.5, 3.0, 70_000.0):
        counts.finish("stem", "server", ms)
        accounting.stage_ms["prefix"].observe(ms)
    return DeviceStatus(
        device="pi-1",
        target="rpi4",
        pid=1,
        since=NOW - 3600,
        written=NOW,
        written_monotonic=1000.0,
        ended="stopped",
        encoder=RunningEncoder(
            generation=1, bundle=bundle.digest, variant="onnx-fp32", runtime="onnxruntime", table="test", on_trial=False
        ),
        cut="stem",
        uncertainty=0.25,
        cpu=0.5,
        uplink=UplinkStatus(broker="nats://gateway:4222", connected=True, bandwidth_mbps=2.5, rtt_ms=80.0, loss=0.125),
        spool=SpoolState(3, 2 << 20, 256 << 20, 0),
        audio=Counters(blocks=9, samples=100, windows=20, gated=4, overruns=1, dropped_samples=8000),
        source_silent_s=0.0,
        health=Health(101.5, 61.25, True),
        metrics_port=9464,
        report=merged(accounting.report(3), counts.report()),
        stage_ms=dict(accounting.stage_ms),
        cut_ms=dict(counts.cut_ms),
        troubles=[Trouble("2026-01-01T00:00:00.000+00:00", "broker is away")],
    )


async def _results(directory: Path, work: Path, bundle: Bundle) -> None:
    """Through the parts of a device that write them."""
    directory.mkdir()
    transport, config = InMemoryTransport(), DeviceConfig(device="pi-1")
    lines = JsonLines(str(directory / "results.jsonl"))
    events = EventSink(transport.publish, "pi-1", "all", LabelRule(min_s=60.0))
    plain = WindowResult(
        version=2, answer="device", window=7, time=NOW, embedding=[0.6, -0.8], uncertainty=0.25, cut="local",
        encoding="int8", probe=False, generation=1, finished="device", latency_ms=3.5, device_ms=3.5, network_ms=0.0,
        server_ms=0.0, frame_bytes=0, bandwidth_mbps=2.5, rtt_ms=80.0, cpu=0.5,
    )  # fmt: skip
    change = partial(msgspec.structs.replace, plain, labels={"dog": 0.75, "rain": 0.125}, detected=["dog"])
    for result in (
        plain,
        change(answer="server", finished="server", cut="stem", frame_bytes=50, head_generation=1),
        change(finished="fallback", probe=True, cut="stem", file="clips/yard.wav", offset_s=1.92),
        change(answer="exit", file="yard.wav", offset_s=0.0),
        change(answer="server", finished="server", revises=1),
    ):
        lines.put(result)
        events.put(result)
    lines.close()
    await asyncio.sleep(0)
    _write_lines(directory / "events.jsonl", transport)
    heard = EventSink(transport.publish, "pi-1")
    heard.put(change(head_generation=1))
    await heard.end()
    del transport.published[0]  # the result, of which there are some already
    _write_lines(directory / "labels.jsonl", transport)
    reports = UpdateReports(config, transport, LoopCounts(), BundleStore(work / "updates", None).trials)
    about, failure = {"generation": 2, "digest": bundle.digest}, FormatError("the self-test is off by 0.5")
    await reports.report("fetched", **about, bytes=900, assets=2, patches=1)
    for kind in ("generation", "proven"):
        await reports.report(kind, **about)
    await reports.report("retired", generation=1, oldest=2)
    for kind in ("update_failed", "rolled_back"):
        await reports.failed(kind, failure, **about)
    for kind in ("update_refused", "table_refused", "head_refused"):
        await reports.failed(kind, failure)
    _write_lines(directory / "updates.jsonl", transport)

    async def status(_: str | None) -> DeviceStatus:
        return _status(bundle)

    beating = asyncio.create_task(Heartbeat(work / "updates", status, transport, Notifier({})).beat_forever())
    await eventually(lambda: transport.values)
    await cancel_all([beating])
    (directory / "report.json").write_bytes(transport.values[subjects.PRESENCE, "pi-1"])


def _write_lines(path: Path, transport: InMemoryTransport) -> None:
    path.write_bytes(b"".join(body + b"\n" for _, body in transport.published))
    transport.published.clear()


def _server(state: Path, work: Path, encoder: Any, bundle: Bundle) -> None:
    """A state directory as it is on the disk of a server that was killed: journals are not yet in the ledgers."""
    kept = ServerState(work)
    minisign.write_key_pair(KEY, work / "signing.key")
    shutil.copytree(bundle.path, kept.bundle_path(1))
    kept.save_weights(1, encoder.tensors)
    rollout = Rollout(work / "rollout.json", RolloutConfig(), clock=lambda: NOW)
    rollout.begin({1: bundle.digest})
    rollout.offer(2, "sha256:" + "2" * 64, {"held_out_before": 2.5, "held_out_after": 2.25, "patch_bytes": 100})
    rollout.observe("pi-1", {"bundle": bundle.digest, "update_failures": [
        {"manifest": "sha256:" + "2" * 64, "event": "update_failed", "reason": "the self-test is off by 0.5"}
    ]})  # fmt: skip
    rollout.roll_back(None, "pi-1: the self-test is off by 0.5")
    access = Access(work)
    _ = access.credentials
    access.add("pi-1")
    access.add("pi-2")
    access.revoke("pi-2")
    generations = Generations(encoder.graph)
    generations.add(open_bundle(kept.bundle_path(1)), encoder.tensors)
    _checkpoint(work / "trainer" / "checkpoint.pt", encoder, generations)
    ledger = kept.ledger()
    ledger.add_all([("pi-1", "boot", index) for index in (0, 1, 2, 5)])
    ledger.save()
    ledger.add_all([("pi-1", "boot", index) for index in (5, 6)] + [("pi-2", "boot", 0)])
    partition = subjects.partition("pi-1")
    with Suspects(work / "suspects", [partition]).retrying_alone(partition, 41):
        shutil.copytree(work, state, ignore=shutil.ignore_patterns("*.lock", "broker"))
    ledger.close()
    for path in (state / "ledger").iterdir():
        if path.read_bytes() in (b"", b"{}"):
            path.unlink()


def _checkpoint(path: Path, encoder: Any, generations: Generations) -> None:
    trainer = Trainer(first_model(encoder.graph, generations.newest), TrainConfig(batch=8, min_windows=8), 6)
    prefix = Prefix(generations.newest.bundle)
    for index, sound in enumerate(_noise(7, 32, 1024)):
        prefix.start(sound)
        kept = torch.from_numpy(prefix.advance(1).copy())
        trainer.add(TrainingWindow("pi-1", "boot", index, 1, 1, kept, 0.5, sequence=index + 1))
    for _ in range(3):
        trainer.step()
    Checkpoints(path, "toys:Tiny").save(trainer)


class _Published:
    """In the place of the broker's stream: keeps what is published."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    async def publish(self, subject: str, data: bytes, stream: str, headers: dict[str, str]) -> None:
        self.messages.append({"subject": subject, "data": base64.b64encode(data).decode(), "headers": headers})


def _dead_letters(path: Path) -> None:
    published = _Published()
    for sequence, (device, reason) in enumerate(
        [("pi-1", "IndexError: out of range"), (dead_letters.UNKNOWN, "?")], 41
    ):
        message = SimpleNamespace(
            metadata=SimpleNamespace(stream=subjects.STREAM, sequence=SimpleNamespace(stream=sequence)),
            subject="act.3.pi-1",
            headers={subjects.IDENTITY_HEADER: f"pi-1.boot.{sequence}"},
            data=b"what was sent",
        )
        coroutine = dead_letters.store(published, message, device, reason)  # type: ignore[arg-type]
        with contextlib.suppress(StopIteration):
            coroutine.send(None)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(published.messages), indent=1))
