"""Feeds damaged input to every parser: each must return a value or raise its one error, within time and memory limits.

python -m tools.fuzz --list
python -m tools.fuzz --target wire --minutes 60
python -m tools.fuzz --minutes 60                # an hour, shared by all targets

The same --seed gives the same cases. Input that breaks a parser is kept in --failures; --repeat FILE tries it again.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import re
import resource
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime_edge.audio.wire_streams import AudioStreamDecoder
from runtime_edge.base.broker_errors import BROKER_ERRORS
from runtime_edge.errors import (
    BackendError,
    BundleError,
    FormatError,
    FrameError,
    HeadError,
    LinkError,
    SignatureError,
    SourceError,
    SpoolError,
    TableError,
    UsageError,
)
from runtime_edge.formats import manifest, minisign
from runtime_edge.formats.codec import CutCodec
from runtime_edge.formats.graphs.onnx_graph import check_onnx
from runtime_edge.formats.graphs.tflite_graph import check_tflite
from runtime_edge.formats.patch import apply_patch, make_patch
from runtime_edge.formats.records.adaptation import Adaptation
from runtime_edge.formats.records.envelope import Kind, open_record
from runtime_edge.formats.records.head import Head
from runtime_edge.formats.records.learnt import Learnt
from runtime_edge.formats.records.release import decode_release
from runtime_edge.formats.records.report import decode_report
from runtime_edge.formats.records.submodel import SubModel
from runtime_edge.formats.records.table import SplitterTable
from runtime_edge.formats.results import decode_result, decode_result_event
from runtime_edge.formats.update_events import decode_update_event
from runtime_edge.formats.wire import WIRE_ENCODINGS, decode_frame, decode_replies
from runtime_edge.inference.profile import Profile
from runtime_edge.transport.direct_get import ObjectInfo
from tools import fuzz_encoders, fuzz_files, fuzz_server, fuzz_stores
from tools.earlier_formats import head_v1
from tools.fuzz_files import GOLDEN

DOCS = Path(__file__).parents[1] / "docs"
CASE_SECONDS = 10
"""Limit of processor time for one case."""
GROWTH_MB = 256
"""The most by which the process may grow in a run."""
Rng = np.random.Generator
Repair = Callable[[bytes], bytes]
_TRACE = b"time_s,cpu,bandwidth_mbps,rtt_ms\n0,0.5,1.5,80\n0.5,0.25,2,75.5\n1.0,0.75,2.5,70\n"
_LABELS = b"file,label,fold\na.wav,dog,1\na.wav,rain,1\nb.wav,cat,2\n"
_EVENTS = b"device,time,label,seconds\npi-1,2026-01-02T03:04:05Z,dog,2.5\npi-2,1700000000,rain,\n"
_OLD = bytes(range(256)) * 512
_NUMBERS = (b"0", b"-1", b"1e300", b"4294967296", b"18446744073709551616", b"null", b"NaN", b'""', b"[]", b"{}")


@dataclass(frozen=True)
class FuzzTarget:
    """A parser, good input for it, and the error it may raise."""

    parse: Callable[[bytes], object]
    error: type[Exception] | tuple[type[Exception], ...]
    corpus: Callable[[], list[bytes]]
    repair: Repair | None = None
    """Repairs some damaged input so that it passes a checksum."""


def golden(pattern: str) -> Callable[[], list[bytes]]:
    """Files of the golden directory."""
    return lambda: [path.read_bytes() for path in sorted(GOLDEN.glob(pattern))]


def lines(name: str) -> Callable[[], list[bytes]]:
    """Lines of a file of the golden directory."""
    return lambda: (GOLDEN / name).read_bytes().splitlines()


def _frame(data: bytes) -> None:
    cuts = manifest.decode((GOLDEN / "server/generations/00001/manifest.json").read_bytes()).info.cuts
    for header, payload in decode_frame(data):
        if header.cut < len(cuts) and WIRE_ENCODINGS[header.encoding] in ("float32", "float16", "int8"):
            try:
                codec = CutCodec(cuts[header.cut], WIRE_ENCODINGS[header.encoding])
            except BundleError:
                continue
            assert np.isfinite(codec.decode(payload, header.compressed)).all()


def _stream(data: bytes) -> None:
    for header, payload in decode_frame(data):
        encoding = WIRE_ENCODINGS[header.encoding]
        if encoding in ("pcm16-stream", "flac", "opus"):
            window = AudioStreamDecoder(encoding, 16_000, 1600, 800).decode(payload, header.window)
            assert window.shape == (1, 1600)


def _whole_frame(data: bytes) -> bytes:
    return data[:-4] + zlib.crc32(data[1:-4]).to_bytes(4, "little") if len(data) > 8 else data


def _patches() -> list[bytes]:
    return [make_patch(_OLD, _OLD[::-1]), make_patch(_OLD, _OLD[64:] + b"tail" * 16)]


def _signature(data: bytes) -> None:
    key = minisign.read_public_key(GOLDEN / "records" / "key.pub")
    minisign.verify((GOLDEN / "records" / "table.json").read_bytes(), data.decode("utf-8", "replace"), key)


def _record(kind: Kind) -> Callable[[bytes], object]:
    return lambda data: open_record(data, kind, None, None, kind)


def _heads() -> list[bytes]:
    (head,) = golden("records/head.json")()
    return [head, head_v1(Head.from_json(head, "head"))]


def _releases() -> list[bytes]:
    return [open_record(data, "release", None, None, "release").body for data in golden("records/release.record")()]


TARGETS = {
    "wire": FuzzTarget(_frame, FrameError, golden("frames/*.frame"), _whole_frame),
    "streams": FuzzTarget(_stream, FrameError, golden("streams/*-0.frame"), _whole_frame),
    "replies": FuzzTarget(decode_replies, FrameError, golden("replies/*.reply")),
    "manifest": FuzzTarget(manifest.decode, BundleError, golden("server/generations/*/manifest.json")),
    "table": FuzzTarget(lambda data: SplitterTable.from_json(data, "table"), TableError, golden("records/table.json")),
    "head": FuzzTarget(lambda data: Head.from_json(data, "head"), HeadError, _heads),
    "adaptation": FuzzTarget(
        lambda data: Adaptation.from_json(data, "adaptation"), FormatError, golden("records/adaptation.json")
    ),
    "submodel": FuzzTarget(
        lambda data: SubModel.from_json(data, "submodel"), BundleError, golden("records/submodel.json")
    ),
    "table-record": FuzzTarget(_record("table"), FormatError, golden("records/table.record")),
    "head-record": FuzzTarget(_record("head"), FormatError, golden("records/head.record")),
    "release-record": FuzzTarget(_record("release"), FormatError, golden("records/release.record")),
    "adaptation-record": FuzzTarget(_record("adaptation"), FormatError, golden("records/adaptation.record")),
    "release": FuzzTarget(lambda data: decode_release(data, "release"), FormatError, _releases),
    "learnt": FuzzTarget(lambda data: Learnt.from_json(data, "learnt"), TableError, golden("records/learnt.json")),
    "signature": FuzzTarget(_signature, SignatureError, golden("records/table.json.minisig")),
    "public-key": FuzzTarget(
        lambda data: minisign.PublicKey.from_text(data.decode("utf-8", "replace")),
        SignatureError,
        golden("records/key.pub"),
    ),
    "patch": FuzzTarget(lambda data: apply_patch(_OLD, data, len(_OLD)), FormatError, _patches),
    "onnx": FuzzTarget(
        lambda data: check_onnx(data, "block"), BackendError, golden("server/generations/**/model.onnx")
    ),
    "tflite": FuzzTarget(lambda data: check_tflite(data, "block"), BackendError, fuzz_encoders.tflite_files),
    "size-expression": FuzzTarget(fuzz_encoders.expression, FormatError, fuzz_encoders.expressions),
    "secret-key": FuzzTarget(
        lambda data: minisign.SecretKey.from_text(data.decode("utf-8", "replace")),
        SignatureError,
        golden("records/key"),
    ),
    "result": FuzzTarget(decode_result, FormatError, lines("results/results.jsonl")),
    "result-event": FuzzTarget(decode_result_event, FormatError, lines("results/events.jsonl")),
    "update-event": FuzzTarget(decode_update_event, FormatError, lines("results/updates.jsonl")),
    "report": FuzzTarget(lambda data: decode_report(data, "report"), FormatError, golden("results/report.json")),
    "credentials": FuzzTarget(fuzz_files.credentials, FormatError, golden("credentials/*.creds")),
    "settings": FuzzTarget(fuzz_files.settings, (UsageError, FormatError), fuzz_files.settings_corpus),
    "checksum": FuzzTarget(fuzz_files.checksum, FormatError, fuzz_files.checksums, fuzz_files.whole_checksum),
    "audio": FuzzTarget(fuzz_files.audio, SourceError, fuzz_files.sounds),
    "status": FuzzTarget(fuzz_files.status, FormatError, golden("device/status.json")),
    "trials": FuzzTarget(fuzz_files.trials, BundleError, golden("device/bundles.json")),
    "numbers": FuzzTarget(fuzz_files.numbers, FormatError, golden("device/numbers.json"), fuzz_files.whole_numbers),
    "mixture": FuzzTarget(fuzz_files.mixture, FrameError, fuzz_files.mixtures),
    "profile": FuzzTarget(lambda data: Profile.from_json(data, "profile"), FormatError, fuzz_files.profiles),
    "target": FuzzTarget(fuzz_files.target, UsageError, fuzz_files.targets),
    "trace": FuzzTarget(fuzz_files.trace, FormatError, lambda: [_TRACE]),
    "labels": FuzzTarget(fuzz_files.labels, (UsageError, FormatError), lambda: [_LABELS]),
    "events": FuzzTarget(fuzz_files.events, (UsageError, FormatError), lambda: [_EVENTS]),
    "results": FuzzTarget(fuzz_files.recorded, FormatError, golden("results/results.jsonl")),
    "encoder": FuzzTarget(fuzz_files.state, FormatError, fuzz_files.checkpoints, fuzz_files.whole_zip),
    "archive": FuzzTarget(fuzz_files.archive, FormatError, fuzz_files.archives, fuzz_files.whole_zip),
    "front-end": FuzzTarget(fuzz_files.front_end, FormatError, fuzz_files.front_ends),
    "weights": FuzzTarget(fuzz_files.weights, FormatError, golden("server/weights/*.pt"), fuzz_files.whole_zip),
    "training": FuzzTarget(fuzz_files.training, FormatError, golden("server/trainer/*.pt"), fuzz_files.whole_zip),
    "ledger": FuzzTarget(fuzz_files.ledger, FormatError, golden("server/ledger/*.json")),
    "rollout": FuzzTarget(fuzz_files.rollout, FormatError, golden("server/rollout.json")),
    "spool": FuzzTarget(fuzz_stores.spool, SpoolError, golden("device/spool.db")),
    "spool-log": FuzzTarget(fuzz_stores.spool_log, SpoolError, fuzz_stores.spool_logs),
    "spool-note": FuzzTarget(
        fuzz_stores.spool_note, FormatError, golden("device/spool.db.note"), fuzz_stores.whole_note
    ),
    "journal": FuzzTarget(
        fuzz_stores.journal, FormatError, golden("server/ledger/*.json.journal"), fuzz_stores.whole_journal
    ),
    "kept-graph": FuzzTarget(
        fuzz_stores.kept_graph, (FormatError, KeyError), golden("server/generations/**/onnx.graph")
    ),
    "head-clips": FuzzTarget(fuzz_stores.head_clips, FormatError, fuzz_stores.head_clips_corpus),
    "record": FuzzTarget(fuzz_stores.record, FormatError, fuzz_stores.records),
    "bench": FuzzTarget(fuzz_stores.measurements, FormatError, lambda: [(DOCS / "proof-zero.json").read_bytes()]),
    "arrival": FuzzTarget(fuzz_stores.arrival, FrameError, fuzz_stores.arrivals),
    "inbox": FuzzTarget(fuzz_stores.inbox, ValueError, fuzz_stores.inboxes),
    "object-info": FuzzTarget(lambda data: ObjectInfo.from_json(data, "model"), FormatError, fuzz_stores.objects),
    "kept-tflite": FuzzTarget(
        fuzz_encoders.kept_tflite_graph, (FormatError, KeyError), fuzz_encoders.kept_tflite_graphs
    ),
    "config": FuzzTarget(fuzz_encoders.config, UsageError, fuzz_encoders.configs),
    "trained": FuzzTarget(fuzz_encoders.trained, FormatError, fuzz_encoders.trained_files, fuzz_files.whole_zip),
    "published": FuzzTarget(fuzz_encoders.published, ValueError, fuzz_encoders.published_configs),
    "stream-size": FuzzTarget(fuzz_server.stream_size, FormatError, fuzz_server.stream_sizes),
    "api-answer": FuzzTarget(fuzz_server.api_answer, LinkError, fuzz_server.api_answers),
    "stored-config": FuzzTarget(fuzz_server.stored_config, FormatError, fuzz_server.stored_configs),
    "direct-answer": FuzzTarget(fuzz_server.direct_answer, BROKER_ERRORS, fuzz_server.direct_answers),
    "rank-request": FuzzTarget(fuzz_server.rank_request, FormatError, lambda: [b'{"keep":[1,2,30]}', b"{}"]),
    "rank-answer": FuzzTarget(fuzz_server.rank_answer, LinkError, fuzz_server.rank_answers),
    "suspect": FuzzTarget(fuzz_server.suspect, FormatError, lambda: [b"12"]),
    "meter": FuzzTarget(fuzz_server.meter, FormatError, fuzz_server.meters),
    "updates": FuzzTarget(fuzz_stores.update_log, FormatError, golden("device/updates.jsonl")),
    "recorded-time": FuzzTarget(fuzz_stores.recorded_time, FormatError, fuzz_stores.recorded_times),
    "devices": FuzzTarget(fuzz_files.members, FormatError, golden("server/devices.json")),
}


def damaged(data: bytes, rng: Rng, other: bytes) -> bytes:
    """Make one to four changes: to bits, bytes, numbers or lengths, or parts cut out, doubled or taken from `other`."""
    found = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        size = max(len(found), 1)
        place = int(rng.integers(min(size, 64) if rng.random() < 0.4 else size))
        length = int(rng.integers(1, 33))
        kind = rng.integers(8)
        if kind == 0 and found:
            found[place] ^= 1 << int(rng.integers(8))
        elif kind == 1 and found:
            found[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF]))
        elif kind == 2:
            del found[place : place + length]
        elif kind == 3:
            found[place:place] = found[place : place + length]
        elif kind == 4:
            found[place:place] = rng.bytes(length)
        elif kind == 5:
            start = int(rng.integers(max(len(other), 1)))
            found[place : place + length] = other[start : start + length]
        elif kind == 6:
            found[place : place + 4] = int(rng.choice([0, 1, 1 << 16, 1 << 31, (1 << 32) - 1])).to_bytes(4, "little")
        else:
            numbers = list(re.finditer(rb"-?\d+(?:\.\d+)?(?:e-?\d+)?", bytes(found[:100_000])))
            if numbers:
                chosen = numbers[int(rng.integers(len(numbers)))]
                found[chosen.start() : chosen.end()] = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
    return bytes(found)


def cases(target: FuzzTarget, seed: int) -> Iterator[bytes]:
    """Yield damaged input endlessly; the same for the same seed."""
    rng, corpus = np.random.default_rng(seed), target.corpus()
    while True:
        data = damaged(corpus[rng.integers(len(corpus))], rng, corpus[rng.integers(len(corpus))])
        yield target.repair(data) if target.repair is not None and rng.random() < 0.5 else data


def verdict(target: FuzzTarget, data: bytes) -> bool:
    """Whether input was read rather than refused. Raises any other error, and AssertionError."""
    with _bounded(CASE_SECONDS), _heard() as unheard:
        try:
            target.parse(data)
            said = None
        except target.error as exc:
            said = str(exc)
    assert not unheard, f"a library's callback failed: {unheard[0]}"
    if said is None:
        return True
    assert "\n" not in said, "an error of several lines"
    return False


def fuzz(target: FuzzTarget, seed: int, stop: Callable[[int], bool]) -> tuple[int, int, bytes | None]:
    """Try cases until `stop(cases so far)`; returns how many were tried and read, and the first to break the parser."""
    for data in target.corpus():
        assert verdict(target, data), "good input is refused"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tried = read = 0
    for data in cases(target, seed):
        if stop(tried):
            return tried, read, None
        try:
            read += verdict(target, data)
            tried += 1
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            assert grown < GROWTH_MB, f"the process has grown by {grown:.0f} MB"
        except Exception:
            traceback.print_exc()
            return tried, read, data
    raise AssertionError("cases have no end")


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Collect exceptions that nobody can catch, which Python would only print."""
    found: list[str] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda what: found.append(repr(what.exc_value))
    try:
        yield found
    finally:
        sys.unraisablehook = before


@contextmanager
def _bounded(seconds: int) -> Iterator[None]:
    """Limit a case's processor time, which does not depend on how busy the machine is."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def main() -> int:
    """Fuzz one target or all; returns 1 if one broke."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("--target", choices=sorted(TARGETS))
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--repeat", type=Path, help="try one file again; needs --target")
    options = parser.parse_args()
    if options.list:
        print("\n".join(TARGETS))
        return 0
    if options.repeat:
        print("read" if verdict(TARGETS[options.target], options.repeat.read_bytes()) else "refused")
        return 0
    logging.disable(logging.ERROR)  # refused and skipped input is counted, not logged
    names = [options.target] if options.target else list(TARGETS)
    failed = 0
    for name in names:
        until = time.monotonic() + options.minutes * 60 / len(names)
        tried, read, broke = fuzz(TARGETS[name], options.seed, lambda _, until=until: time.monotonic() > until)  # type: ignore[misc]
        print(f"{name}: {tried} cases, {read} read, {tried - read} refused, seed {options.seed}", flush=True)
        if broke is not None:
            options.failures.mkdir(exist_ok=True)
            path = options.failures / f"{name}-{hashlib.sha256(broke).hexdigest()[:16]}"
            path.write_bytes(broke)
            print(f"{name}: BROKE, see {path}", flush=True)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
