"""Several tools publish numbers under one key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import benchmarks
from tools.benchmarks import Section, publish


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(benchmarks, "DOCS", tmp_path)
    return tmp_path


def section(part: str, **numbers: float) -> Section:
    made = Section("server", f"The server, {part}", f"python -m tools.{part}", part)
    for name, value in numbers.items():
        made.add(name.replace("__", "."), value, "at least 0.5", f"what {name} is")
    return made


def test_parts_of_a_key_keep_each_others_numbers_and_replace_their_own(docs: Path) -> None:
    publish(section("load", reply_ms=9.0, gone=1.0))
    publish(section("learning", probe__random=0.25))

    publish(section("load", reply_ms=7.0))

    content = json.loads((docs / "benchmarks.json").read_text())
    assert content["server"] == {"reply_ms": 7.0, "probe": {"random": 0.25}}
    assert content["machine"].keys() == {"server.load", "server.learning"}
    page = (docs / "benchmarks.md").read_text()
    assert page.count("## The server, load") == page.count("## The server, learning") == 1
    assert "| `server.reply_ms` | 7 | at least 0.5, met |" in page
    assert "| `server.probe.random` | 0.25 | at least 0.5, **missed** |" in page
    assert "server.gone" not in page


def test_parts_share_a_mapping_and_each_replaces_its_own_of_it(docs: Path) -> None:
    publish(section("load", lost__one=1.0, lost__gone=2.0))
    publish(section("learning", lost__other=3.0))

    publish(section("load", lost__one=4.0))

    assert json.loads((docs / "benchmarks.json").read_text())["server"] == {"lost": {"one": 4.0, "other": 3.0}}
    with pytest.raises(ValueError, match=r"server\.load: lost\.other already published"):
        publish(section("load", lost__other=1.0))


def test_a_section_without_a_part_replaces_its_key(docs: Path) -> None:
    publish(Section("edge", "The device", "python -m tools.edge", numbers={"a": 1.0}))
    publish(Section("edge", "The device", "python -m tools.edge", numbers={"b": 2.0}))

    assert json.loads((docs / "benchmarks.json").read_text())["edge"] == {"b": 2.0}


def test_a_number_of_another_part_is_not_overwritten(docs: Path) -> None:
    publish(section("load", reply_ms=9.0))

    with pytest.raises(ValueError, match=r"server\.learning: reply_ms already published"):
        publish(section("learning", reply_ms=1.0))
