"""No page and no hint installs from a package index: `streamsplit` there is another program."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from runtime_edge.errors import DISTRIBUTION, MissingExtra

REPOSITORY = Path(__file__).parents[2]
NAME = r"streamsplit(?:[-_]audio)?"
FROM_AN_INDEX = re.compile(rf"""pip3? install\b[^\n|&]*?[\s"']{NAME}(?![\w.-])|[\s"'`]{NAME}\\?\[""")
WHEEL = re.compile(r"streamsplit_audio-(\d[\w.]*?)-py3-none-any\.whl")


def tracked() -> dict[str, str]:
    """Text of every file that git knows, with continued lines joined."""
    try:
        listed = subprocess.check_output(
            ["git", "ls-files", "-z"], cwd=REPOSITORY, text=True, stderr=subprocess.DEVNULL
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [REPOSITORY / name for name in listed.split("\0") if name]
    texts = {str(path.relative_to(REPOSITORY)): path.read_text(errors="replace") for path in paths if path.is_file()}
    return {name: text.replace("\\\n", " ") for name, text in texts.items()}


def test_nothing_installs_this_project_from_an_index() -> None:
    own = {"pyproject.toml", str(Path(__file__).relative_to(REPOSITORY))}
    found = {name: FROM_AN_INDEX.findall(text) for name, text in tracked().items() if name not in own}
    assert {name: hits for name, hits in found.items() if hits} == {}


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("pip install streamsplit", True),
        ('/opt/ssc/bin/pip install --upgrade "streamsplit[edge,audio]"', True),
        ("pip3 install -U streamsplit-audio==0.2.0", True),
        (r'match=r"needs streamsplit\[edge\]"', True),
        ("`streamsplit-audio[edge]`", True),
        ('pip install "streamsplit_audio-0.2.0-py3-none-any.whl[edge]"', False),
        ('pip install "${WHEEL}[edge]"', False),
        ("pip uninstall --yes streamsplit", False),
        ("streamsplit_compile[0]", False),
    ],
)
def test_the_pattern_knows_an_install_from_an_index(text: str, bad: bool) -> None:
    assert bool(FROM_AN_INDEX.search(text)) is bad


def test_every_wheel_that_is_named_is_of_this_version() -> None:
    named = {found for name, text in tracked().items() if name.endswith(".md") for found in WHEEL.findall(text)}
    assert named == {version(DISTRIBUTION)}


def test_a_missing_extra_names_the_wheel() -> None:
    wheel = f"streamsplit_audio-{version(DISTRIBUTION)}-py3-none-any.whl"
    expected = f'soxr is not installed: pip install "{wheel}[edge,audio]" (the wheel that `make wheel` builds)'
    assert str(MissingExtra("soxr", "edge,audio")) == expected
