"""The commands that README and docs have a user type, each with the extras of the environment that it is typed in.

A block that installs the wheel names them for what follows in it; otherwise the table of extras in the guide does.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
GUIDE = ROOT / "docs" / "guide.md"

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:^|[|;&] |sudo |/bin/|which )ssc\)? ([a-z].*)")
_WHEEL = re.compile(r"(?:\.whl|\$\{WHEEL\})\[([\w,-]+)\]")
_ROW = re.compile(r"^\| `([\w,-]+)` \|[^|]*\|([^|]*)\|$", re.MULTILINE)


@dataclass(frozen=True)
class Documented:
    """One command of a page, as `ssc ...` without a comment."""

    page: str
    text: str
    extras: str
    """As in the brackets of `pip install`; empty when no page says."""


def documented() -> list[Documented]:
    """The commands of all pages, in order."""
    usual = extras_of_commands(GUIDE.read_text())
    return [found for page in PAGES for found in _of_page(page, usual)]


def extras_of_commands(guide: str) -> dict[str, str]:
    """What the guide's table says: a command, or its beginning and options, to extras."""
    rows = _ROW.findall(guide)
    return {command: extras for extras, cell in rows for command in re.findall(r"`(ssc [^`]+)`", cell)}


def commands_in(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a page's shell blocks, with the extras that its block has installed before it."""
    for language, block in _BLOCK.findall(text):
        extras = ""
        for line in block.replace("\\\n", " ").splitlines() if language == "sh" else ():
            if installed := _WHEEL.search(line):
                extras = installed.group(1)
            if command := _COMMAND.search(re.sub(r"(?:^|\s+)#.*", "", line)):
                yield " ".join(["ssc", *command.group(1).split()]), extras


def usual_extras(command: str, table: dict[str, str]) -> str:
    """The extras of the table's longest entry that a command begins with, and whose options it has."""
    fitting = [entry for entry in table if _fits(shlex.split(command), shlex.split(entry))]
    return table[max(fitting, key=len)] if fitting else ""


def _of_page(page: Path, usual: dict[str, str]) -> Iterator[Documented]:
    for text, extras in commands_in(page.read_text()):
        yield Documented(page.relative_to(ROOT).as_posix(), text, extras or usual_extras(text, usual))


def _fits(words: list[str], entry: list[str]) -> bool:
    first = next((place for place, word in enumerate(entry) if word.startswith("-")), len(entry))
    if words[:first] != entry[:first]:
        return False
    option, *value = entry[first:] or [""]
    if not option:
        return True
    given = words[words.index(option) + 1 :][:1] if option in words else []
    return option in words and (not value or value[0] in ",".join(given).split(","))
