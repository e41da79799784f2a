"""The workflow for arm64 Linux and macOS: every `ssc` command in it is one that there is, with options it has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from streamsplit_compile.cli.main import ssc

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
COMMAND = re.compile(r"run: (?:sudo )?(?:device/bin/)?ssc (.+)$", re.MULTILINE)


def commands(path: Path) -> Iterator[list[str]]:
    for text in COMMAND.findall(path.read_text()):
        yield shlex.split(re.sub(r"\$\{\{[^}]*\}\}", "rpi4", text))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_each_command_is_one_that_there_is(path: Path) -> None:
    found = list(commands(path))
    assert ["bench", "device", "bundle/", "--target", "rpi4", "-o", "device.json"] in found
    for words in found:
        command: click.Command = ssc
        context = click.Context(command)
        rest = list(words)
        while isinstance(command, click.Group):
            name, inner, rest = command.resolve_command(context, rest)
            assert inner is not None, name
            command = inner
        command.make_context(command.name, rest)


def test_both_systems_are_there() -> None:
    text = (ROOT / ".github" / "workflows" / "devices.yml").read_text()
    for system in ("ubuntu-24.04-arm", "macos-14"):
        assert text.count(system) == 2


def test_it_is_yaml_with_jobs_that_need_each_other() -> None:
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "devices.yml").read_text())["jobs"]
    assert jobs["device"]["needs"] in jobs
    assert all("runs-on" in job and job["steps"] for job in jobs.values())
