"""Writes docs/benchmarks.json and docs/benchmarks.md: every number with its goal, its command and its machine."""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
_PACKAGES = ("torch", "onnxruntime", "onnx", "numpy")


@dataclass
class Section:
    """One tool's numbers. Tools that share a key name their parts and use different names for their numbers; only a
    mapping may have numbers of several tools.
    """

    key: str
    title: str
    command: str
    part: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the block on the page and of the machine's entry: `key`, or `key.part`."""
        return f"{self.key}.{self.part}" if self.part else self.key

    def add(self, name: str, value: float, goal: str, what: str) -> None:
        """Add a number for programs; `group.name` goes into a mapping `group`. An empty `goal` means there is none."""
        self.numbers[name] = round(value, 5)
        judged = f"{goal}, {_verdict(value, goal)}" if goal else ""
        self.rows.append((f"`{self.key}.{name}`", f"{value:.4g}", judged, what))

    def detail(self, what: str, value: str) -> None:
        """Add a number for people only."""
        self.rows.append(("", value, "", what))


def publish(section: Section) -> dict[str, Any]:
    """Replace a section in both files; returns the JSON's contents.

    Numbers of other parts with the same key are kept.
    """
    path = DOCS / "benchmarks.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    kept = _flat(content.get(section.key, {})) if section.part else {}
    names = content.setdefault("parts", {})
    for name in names.get(section.name, []):
        kept.pop(name, None)
    if taken := sorted(section.numbers.keys() & kept.keys()):
        raise ValueError(f"{section.name}: {', '.join(taken)} already published by another part of {section.key}")
    if section.part:
        names[section.name] = sorted(section.numbers)
    content[section.key] = _nested(kept | section.numbers)
    content.setdefault("machine", {})[section.name] = machine()
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    _publish_page(section)
    show(section)
    return content


def show(section: Section) -> None:
    """Print a section's rows."""
    for name, value, goal, what in section.rows:
        print(f"{name.strip('`'):44} {value:>10}  {what}  {f'({goal})' if goal else ''}")


def _nested(numbers: dict[str, float]) -> dict[str, Any]:
    """`{"a": 1, "b.c": 2}` as `{"a": 1, "b": {"c": 2}}`."""
    nested: dict[str, Any] = {}
    for name, value in numbers.items():
        group, _, rest = name.partition(".")
        if rest:
            nested.setdefault(group, {})[rest] = value
        else:
            nested[group] = value
    return nested


def _flat(nested: dict[str, Any]) -> dict[str, float]:
    """`{"a": 1, "b": {"c": 2}}` as `{"a": 1, "b.c": 2}`."""
    found: dict[str, float] = {}
    for name, value in nested.items():
        found |= {f"{name}.{rest}": one for rest, one in value.items()} if isinstance(value, dict) else {name: value}
    return found


def machine() -> dict[str, str]:
    """The machine on which the numbers were measured."""
    return {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def _publish_page(section: Section) -> None:
    path = DOCS / "benchmarks.md"
    start, end = f"<!-- {section.name} -->", f"<!-- end {section.name} -->"
    where = ", ".join(f"{key} {value}" for key, value in machine().items())
    lines = [
        start,
        f"## {section.title}",
        "",
        f"`{section.command}`",
        "",
        "| number | value | goal | what |",
        "|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(row)} |" for row in section.rows]
    block = "\n".join([*lines, "", f"Measured on: {where}.", end])
    page = path.read_text() if path.exists() else _HEAD
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.S)
    page = pattern.sub(lambda _: block, page) if pattern.search(page) else f"{page.rstrip()}\n\n{block}\n"
    path.write_text(page)


_HEAD = """# Benchmarks

Made by `make bench`; the same numbers are in [benchmarks.json](benchmarks.json). Ratios compare alternatives,
interleaved within one run; seconds and milliseconds are those of the machine named below each table.

Figures measured once, to choose between alternatives, are in [measurements.md](measurements.md).
"""


def _verdict(value: float, goal: str) -> str:
    kind, bound = re.fullmatch(r"(at most|at least) (-?[\d.]+)", goal).groups()  # type: ignore[union-attr]
    met = value <= float(bound) if kind == "at most" else value >= float(bound)
    return "met" if met else "**missed**"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text())
        if found:
            return found.group(1)
    return platform.processor() or platform.machine()
