"""Two versions are measured in turn, and compared pair by pair."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.bench_house import Checkout, Pair, taking_turns

SIDES = (Checkout("today", Path("a"), Path("a/python")), Checkout("earlier", Path("b"), Path("b/python")))


def test_the_sides_take_turns_and_begin_in_turn(tmp_path: Path) -> None:
    names: list[str] = []

    def measure(side: Checkout, name: str) -> float:
        names.append(name)
        return len(names) + (100.0 if side.name == "today" else 0.0)

    found = taking_turns("x", SIDES, 3, measure, tmp_path / "pairs.jsonl", "code")

    assert names == ["0-today", "0-earlier", "1-earlier", "1-today", "2-today", "2-earlier"]
    assert found == [Pair(101.0, 2.0), Pair(104.0, 3.0), Pair(105.0, 6.0)]
    assert [pair.ratio for pair in found] == [50.5, pytest.approx(104 / 3), 17.5]


def test_a_run_that_was_stopped_continues_with_the_same_code_alone(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    first = taking_turns("x", SIDES, 2, lambda side, name: 1.0, file, "code")
    names: list[str] = []

    def measure(side: Checkout, name: str) -> float:
        names.append(name)
        return 2.0

    assert taking_turns("x", SIDES, 3, measure, file, "code") == [*first, Pair(2.0, 2.0)]
    assert names == ["2-today", "2-earlier"]
    for what, code in (("y", "code"), ("x", "other"), ("x", "")):
        assert taking_turns(what, SIDES, 1, measure, file, code) == [Pair(2.0, 2.0)]
    assert taking_turns("x", SIDES, 1, lambda side, name: 3.0, file, "") == [Pair(3.0, 3.0)]


def test_a_checkout_that_runs_other_code_is_refused(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho /elsewhere/runtime_edge/__init__.py\n")
    python.chmod(0o755)
    with pytest.raises(SystemExit, match="other: runs /elsewhere"):
        Checkout("other", tmp_path, python).check()
