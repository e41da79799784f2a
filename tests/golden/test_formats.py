"""Files of every format that earlier versions wrote: today's code reads them to the same values, and starts from them.

`tests/data/golden/VERSION` holds what a version wrote, and in `expected.json` what it read in it.
"""

from __future__ import annotations

import asyncio
import ctypes.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from golden_read import FORMATS
from golden_write import write
from toys import Tiny

import runtime_edge
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.formats.results import decode_result
from runtime_server.harness import ports
from runtime_server.server import Server
from runtime_server.serving.server_config import ServerConfig
from streamsplit_compile.encoder.encoders import load_encoder

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
VERSIONS = sorted(path.parent.name for path in GOLDEN.glob("*/expected.json"))
WRITES_LIKE = "0.2.0"
"""The version whose bytes today's code still writes."""
SAME_BYTES = (
    "frames/*-noise.frame",  # without zstd, whose versions write other bytes
    "streams/pcm16-stream-*.frame",
    "replies/ok.reply",
    "replies/retired.reply",
    "replies/refused.reply",
    "records/[!s]*[!d]",  # a sub-model holds a manifest, which differs between processors
    "records/[!a]*.record",  # an adaptation's is a zstd frame
    "device/bundles.json",
    "device/table.json",
    "device/head.json",
    "device/release.json",
    "device/numbers.json",
    "device/trusted.pub",
    "server/rollout.json",
    "server/ledger/*.json",
    "server/suspects/*",
    "dead_letters.json",
    "results/*",
)
SEAL = re.compile(rb'((?:signature|digest)\\*":\s?\\*")[^"]*?(?=\\*")')


def test_there_are_golden_files() -> None:
    assert WRITES_LIKE in VERSIONS


@pytest.fixture(params=VERSIONS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what one version wrote: what is opened may change."""
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / request.param))


@pytest.mark.parametrize("name", FORMATS)
def test_what_an_earlier_version_wrote_reads_the_same(golden: Path, name: str) -> None:
    expected = json.loads((golden / "expected.json").read_text())
    if name not in expected:
        pytest.skip(f"{golden.name} did not have {name}")
    if name == "streams" and ctypes.util.find_library("opus") is None:
        expected[name] = {key: value for key, value in expected[name].items() if not key.startswith("opus")}
        for path in (golden / "streams").glob("opus-*"):
            path.unlink()
    assert without_new(json.loads(json.dumps(FORMATS[name](golden))), expected[name]) == expected[name]


@pytest.mark.parametrize("side", ["device", "server"])
def test_what_was_upgraded_reads_the_same_again(golden: Path, side: str, caplog: pytest.LogCaptureFixture) -> None:
    first, second = FORMATS[side](golden), FORMATS[side](golden)
    if side == "server":  # each reading adds windows to the ledger
        assert (first.pop("windows"), second.pop("windows")) == ({"pi-1": 5, "pi-2": 1}, {"pi-1": 8, "pi-2": 1})
        assert (sum(first.pop("new")), sum(second.pop("new"))) == (3, 0)
    assert second == first
    assert [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()] == []


SAYS_NOTHING = {"front_end": "graph"}
"""Values, beside empty ones, of fields that say no more than an earlier version did without them."""


def without_new(found: Any, expected: Any) -> Any:
    """Without fields that a version did not have yet, where they say nothing."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return {
            name: without_new(value, expected.get(name))
            for name, value in found.items()
            if name in expected or (says_something(value) and value != SAYS_NOTHING.get(name))
        }
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        return [without_new(*pair) for pair in zip(found, expected, strict=True)]
    return found


def says_something(value: Any) -> bool:
    """Whether there is more in it than zeros and what is empty."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(says_something, parts)) if isinstance(value, dict | list) else bool(value)


@pytest.mark.integration
def test_todays_code_writes_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "today")
    known = GOLDEN / WRITES_LIKE
    mine, theirs = (_digest(root) for root in (tmp_path / "today", known))
    for pattern in SAME_BYTES:
        paths = sorted(known.glob(pattern))
        assert paths, pattern
        for path in paths:
            found, expected = (tmp_path / "today" / path.relative_to(known)).read_bytes(), path.read_bytes()
            if mine != theirs:
                # A bundle's own digest is another one where its tools or processor are others (test_bundles.py), and
                # with it the signature of what names it.
                found, expected = unsealed(found.replace(mine, theirs)), unsealed(expected)
            assert found == expected, path.name


def unsealed(data: bytes) -> bytes:
    """JSON, also within JSON, with empty signatures and digests."""
    return SEAL.sub(rb"\1", data)


def test_only_signatures_and_digests_are_left_out() -> None:
    inner = json.dumps({"manifest": "sha256:1", "signature": "untrusted: a\nRUT+/==\ntrusted: b\n"})
    outer = json.dumps({"record": inner, "signature": "untrusted: c\nRUQ==\n", "number": 3})
    left = json.loads(unsealed(outer.encode()))
    assert json.loads(left["record"]) == {"manifest": "sha256:1", "signature": ""}
    assert (left["signature"], left["number"]) == ("", 3)


@pytest.mark.integration
def test_a_device_goes_on_from_the_state_of_an_earlier_version(golden: Path, tmp_path: Path, free_port: int) -> None:
    """The broker is away, so it runs what is on the disk, and its frames come behind those in the spool."""
    soundfile.write(tmp_path / "sound.wav", np.sin(np.arange(8192) * 0.3).astype(np.float32), Tiny.sample_rate)
    results: list[Any] = []
    lines = golden / "results" / "results.jsonl"
    earlier = lines.read_bytes()
    report = runtime_edge.run(
        str(tmp_path / "sound.wav"), results.append, device="pi-1", target="rpi4", state=golden / "device",
        broker=f"nats://127.0.0.1:{free_port}", realtime=False, max_windows=3, drain_s=0.0, deadline_ms=50,
        results=[str(lines)],
    )  # fmt: skip
    assert [result.generation for result in results] == [1, 1, 1]
    assert [list(result.labels) != [] for result in results] == [True] * 3, "the head on the disk labels results"
    assert lines.read_bytes().startswith(earlier), "lines are appended to those of the earlier version"
    read = [decode_result(line) for line in lines.read_bytes().splitlines()]
    assert read[-3:] == results
    assert [(result.version, result.answer) for result in results] == [(2, "device")] * 3
    assert {result.file for result in results} == {str(tmp_path / "sound.wav")}
    front_end = open_bundle(golden / "server" / "generations" / "00001").manifest.info.front_end
    for result in results:
        assert result.offset_s == pytest.approx(result.window * front_end.hop_samples / front_end.sample_rate, abs=1e-6)
    assert report["windows_inherited"] == 3
    assert report["windows_lost"] == 0


@pytest.mark.integration
def test_a_server_goes_on_from_the_state_of_an_earlier_version(golden: Path, tiny_file: Path, free_port: int) -> None:
    encoder = load_encoder(tiny_file, "toys:Tiny")
    bundle = golden / "server" / "generations" / "00001"

    async def life() -> dict[str, Any]:
        server = Server(encoder, ServerConfig(bundle=bundle, state=golden / "server", port=free_port))
        started = asyncio.get_running_loop().create_future()
        running = asyncio.create_task(server.run(started.set_result))
        await asyncio.wait({running, started}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        server.stop()
        return await asyncio.wait_for(running, 60)

    status = asyncio.run(life())
    assert status["generation"] == 1
    assert status["windows"] == {"pi-1": 5, "pi-2": 1}
    assert status["ledger"] == {"damaged_lines": 0}
    assert status["training_steps"] == 3
    assert [(entry["generation"], entry["status"]) for entry in status["rollout"]["releases"]] == [
        (2, "rolled back"),
        (1, "stable"),
    ]


@pytest.fixture
def free_port() -> int:
    return ports.free_port()


def _digest(root: Path) -> bytes:
    return open_bundle(root / "server" / "generations" / "00001").digest.encode()
