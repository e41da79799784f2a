"""The tables of the page on formats say what the code says: the same fields in the same order, types and bounds."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import field_types
import golden_read
import numpy as np
import pytest
import soundfile
import torch
from toys import Tiny

import runtime_edge
from runtime_edge.errors import FormatError
from runtime_edge.formats.update_events import decode_update_event
from runtime_edge.transport.spool.spool import Spool
from runtime_edge.updates.trial import Trials
from runtime_server.ingest import dead_letters
from runtime_server.state.ledger import Ledger, PartitionedLedger
from runtime_server.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
GOLDEN = ROOT / "tests" / "data" / "golden" / "0.2.0"
TABLE = re.compile(r"(?<=\n)\| field \| type \| bounds \| default \| since \| meaning \|\n\|[-|]+\|\n((?:\|.*\n)+)")
CAPTION = re.compile(r"`(\w+)` \(`([\w/]+\.py)`\):\n\n$")
VERSIONS = ("0.1", "0.2")
NO_TABLE = {
    "Strict": "base of others",
    "Part": "base of others",
    "_Common": "base of others",
    "Costs": "base of ActionCosts",
    "ReleasedBundle": "base of Release",
    "_AnyVersion": "looks which version it is",
    "_SignedTable": "version 1, told in prose",
    "_SignedHead": "version 1, told in prose",
    "_Version1": "version 1, told in docs/tables.md",
    "SplitterTable": "a table in memory",
    "FrameHeader": "a header in memory",
    "Reply": "a reply in memory",
    "StoredTensor": "a place in a file, in memory",
    "OnnxFile": "what a check finds, in memory",
    "_Noted": "told in prose",
    "Envelope": "a header of the broker's, told in prose",
    "Components": "told in prose",
    "Allowance": "not written",
    "_About": "not written",
}
Row = tuple[str, ...]


def rows(text: str) -> list[Row]:
    cells = [re.split(r"(?<!\\) \|", line.removeprefix("|").removesuffix(" |")) for line in text.splitlines()]
    return [tuple(cell.strip() for cell in row) for row in cells]


def tables() -> Iterator[tuple[str, str | None, list[Row]]]:
    """Of each table what stands above it (a class, or the heading), the class's file, and the rows."""
    for found in TABLE.finditer(PAGE):
        before = PAGE[: found.start()]
        caption = CAPTION.search(before)
        heading = re.findall(r"^#+ (.+)$", before, re.MULTILINE)[-1]
        yield (caption[1], caption[2], rows(found[1])) if caption else (heading, None, rows(found[1]))


OF_CLASSES = {name: (path, found) for name, path, found in tables() if path}
OF_OTHERS = {name: found for name, path, found in tables() if not path}
KINDS = OF_CLASSES["UpdateEvent"][1][0][1]
"""Of events about updates: the type of their first field."""


@pytest.mark.parametrize("name", OF_CLASSES)
def test_a_table_has_the_fields_of_its_class(name: str) -> None:
    path, found = OF_CLASSES[name]
    assert [(field.strip("`"), *rest) for field, *rest in (row[:4] for row in found)] == field_types.rows(path, name)


def test_every_row_says_since_when_and_what() -> None:
    every = [row for _, _, found in tables() for row in found]
    assert len(every) > 300, "the tables are no longer found"
    assert [row for row in every if len(row) != 6 or row[4] not in VERSIONS or not row[5]] == []
    assert PAGE.count("| field |") == len(OF_CLASSES) + len(OF_OTHERS), "two tables of one name, or of another form"


def test_every_class_that_is_named_as_a_type_has_its_table() -> None:
    types = {word for _, _, found in tables() for row in found for word in re.findall(r"`([A-Z_]\w+)`", row[1])}
    assert types - OF_CLASSES.keys() == {"ReleasedBundle"}, "the first four fields of a release"


def test_every_structure_of_the_formats_has_its_table() -> None:
    names = set()
    for path in sorted((ROOT / "runtime_edge" / "formats").rglob("*.py")):
        classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        bases = {node.name: [ast.unparse(base) for base in node.bases] for node in classes}
        names |= {name for name, above in bases.items() if above and not re.search(r"(Error|Exception)\b", str(above))}
    assert names - OF_CLASSES.keys() == NO_TABLE.keys()


def test_each_event_about_updates_has_the_fields_that_its_row_names() -> None:
    section = PAGE.partition("\n| `event` | when | fields |\n")[2].partition("\n\n")[0]
    told = {}
    for kinds, _, fields in rows(section)[1:]:
        always, _, perhaps = (set(re.findall(r"`(\w+)`", part)) for part in fields.partition("; perhaps "))
        told |= {kind: {frozenset(always), frozenset(always | perhaps)} for kind in re.findall(r"`(\w+)`", kinds)}
    details = {"generation": 1, "digest": "", "reason": "", "bytes": 1, "assets": 1, "patches": 1, "oldest": 1}
    choices = [frozenset(some) for count in range(len(details) + 1) for some in combinations(details, count)]
    found: dict[str, set[frozenset[str]]] = {kind: set() for kind in re.findall(r"`(\w+)`", KINDS)}
    for kind, names in product(found, choices):
        event = {"event": kind, "version": 2, "device": "pi-1", **{name: details[name] for name in names}}
        with contextlib.suppress(FormatError):
            decode_update_event(json.dumps(event).encode())
            found[kind].add(names)
    assert found == told


def report(work: Path) -> list[str]:
    """Of a device without a broker, behind the version, which stands in what is published alone."""
    soundfile.write(work / "sound.wav", np.zeros(2048, np.float32), Tiny.sample_rate)
    bundle = GOLDEN / "server" / "generations" / "00001"
    told = runtime_edge.run(
        str(work / "sound.wav"), lambda result: None, bundle=bundle, target="rpi4", state=work, realtime=False,
        mb_per_day=2.0, update_mb_per_day=1.0,
    )  # fmt: skip
    return ["version", *told]


def letter(_: Path) -> list[str]:
    published: list[dict[str, str]] = []

    async def publish(subject: str, data: bytes, stream: str, headers: dict[str, str]) -> None:
        published.append(headers)

    place = SimpleNamespace(stream="ACTIVATIONS", sequence=SimpleNamespace(stream=1))
    message: Any = SimpleNamespace(metadata=place, subject="act.0.pi-1", headers={}, data=b"")
    stream: Any = SimpleNamespace(publish=publish)
    asyncio.run(dead_letters.store(stream, message, "pi-1", "why"))
    return list(published[0])


def update(work: Path) -> list[str]:
    Trials(work).note("proven")
    return list(json.loads((work / "updates.jsonl").read_bytes()))


def frames(work: Path) -> list[str]:
    Spool(work / "spool.db", 1 << 20).close()
    with contextlib.closing(sqlite3.connect(work / "spool.db")) as database:
        return [column for _, column, *_ in database.execute("PRAGMA table_info(frames)")]


def journal(work: Path) -> list[str]:
    ledger = PartitionedLedger(work, [2])
    ledger.add("pi-1", "boot", 7)
    first, line = (work / "2.json.journal").read_text().splitlines()
    ledger.close()
    assert first == "streamsplit.journal/2"
    assert re.fullmatch(r"pi-1\.boot\.7~[0-9a-f]{8}", line)
    return ["device", "boot", "index", "checksum"]


def checkpoint(work: Path) -> list[str]:
    shutil.copytree(GOLDEN / "server", work / "server")
    trainer = golden_read.trainer_of(work / "server")
    Checkpoints(work / "checkpoint.pt", "toys:Tiny").save(trainer)
    return list(torch.load(work / "checkpoint.pt", weights_only=True))


OTHERS: dict[str, Callable[[Path], list[str]]] = {
    "Presence reports": report,
    "Dead letters": letter,
    "updates.jsonl": update,
    "The spool": frames,
    "The ledger": journal,
    "checkpoint.pt": checkpoint,
}
"""By heading, the fields as the code writes them."""


@pytest.mark.parametrize("heading", OF_OTHERS)
def test_a_table_has_the_fields_that_are_written(heading: str, tmp_path: Path) -> None:
    assert [row[0].strip("`") for row in OF_OTHERS[heading]] == OTHERS[heading](tmp_path)


def test_a_ledger_is_as_the_page_says() -> None:
    ledger = Ledger()
    ledger.add_all([("pi-1", "boot", index) for index in (0, 1, 2, 5)])
    assert json.loads(ledger.to_bytes()) == {"pi-1.boot": [[0, 2], [5, 5]]}
    assert Ledger.from_bytes(b'{"pi-1.":[[0,9]],"pi-1.boot":[[3,4]]}').counts() == {"pi-1": 12}
