"""What the pages and the docstrings point to is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("models", "runtime_edge", "runtime_server", "streamsplit_compile", "tests", "tools")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

LINK = re.compile(r"\]\(([^)\s]+)\)")
PLACE = re.compile(rf"`((?:{'|'.join((*PACKAGES, 'docs'))})/[\w./-]*)`")
SECTION = re.compile(r"docs/method\.md,?\s+section (\d+)")


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What can stand behind a # in a link to the page: its headings in lower case, with dashes for spaces."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> Iterator[str]:
    for link in LINK.findall(prose(page)):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert list(broken(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_of_the_repository_that_a_page_names_exists(page: Path) -> None:
    assert [place for place in PLACE.findall(prose(page)) if not (ROOT / place).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_and_tool_that_a_command_names_exists(page: Path) -> None:
    commands = "\n".join(re.findall(r"^```.*?^```", page.read_text(), flags=re.MULTILINE | re.DOTALL))
    named = re.findall(r"\b((?:tests|tools)/[\w/-]+(?:\.\w+)?)", commands)
    assert [place for place in named if not (ROOT / place).exists()] == []


def test_every_section_of_the_method_that_is_named_exists() -> None:
    sections = set(re.findall(r"^## (\d+)\. ", (ROOT / "docs" / "method.md").read_text(), re.MULTILINE))
    named = [(path, number) for path in (*SOURCES, *PAGES) for number in SECTION.findall(path.read_text())]
    assert len(named) > 40, "the pattern no longer finds the references"
    assert [f"{path.relative_to(ROOT)}: section {number}" for path, number in named if number not in sections] == []


def test_a_missing_page_and_a_missing_heading_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One heading\n")
    page = tmp_path / "page.md"
    page.write_text("[a](other.md#one-heading) [b](gone.md) [c](other.md#two) [d](https://example.org)\n")

    assert list(broken(page)) == ["gone.md", "other.md#two"]
