"""The stops that the page on architecture names are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
STOP = re.compile(r"^\| \d\. .* \| `([\w/]+\.py)` \| `([\w.]+)` \|$", re.MULTILINE)
MOST_STOPS = 8


def holds(source: str, name: str) -> bool:
    """Whether a module defines a function, or a class one with that method."""
    body: list[ast.stmt] = ast.parse(source).body
    *classes, function = name.split(".")
    for wanted in classes:
        found = [node for node in body if isinstance(node, ast.ClassDef) and node.name == wanted]
        body = found[0].body if found else []
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function for node in body)


@pytest.mark.parametrize(("file", "name"), STOP.findall(PAGE))
def test_every_stop_is_a_function_of_the_file_that_is_named(file: str, name: str) -> None:
    assert holds((ROOT / file).read_text(), name)


def test_each_way_has_two_sides_with_eight_stops_at_most() -> None:
    _, *tables = re.split(r"^On the .*:$", PAGE, flags=re.MULTILINE)
    stops = [re.findall(r"^\| (\d)\. ", table, re.MULTILINE) for table in tables]
    assert len(stops) == 4
    assert all(side == [str(number + 1) for number in range(len(side))] for side in stops)
    assert all(len(side) <= MOST_STOPS for side in stops)
    assert sum(map(len, stops)) == len(STOP.findall(PAGE)), "a stop that the pattern does not read"


def test_what_is_not_there_is_found() -> None:
    source = "class A:\n    def b(self): ...\n\ndef c(): ...\n"
    assert holds(source, "A.b")
    assert holds(source, "c")
    assert not holds(source, "A.c")
    assert not holds(source, "B.b")
    assert not holds(source, "b")
