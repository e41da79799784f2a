"""What every test and every source file keeps to, read off their syntax."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TOOLS = sorted((ROOT / "tools").rglob("*.py"))
PACKAGES = {
    "runtime_edge": ROOT / "runtime_edge",
    "runtime_server": ROOT / "runtime_server",
    "streamsplit_compile": ROOT / "streamsplit_compile",
    "streamsplit_models": ROOT / "models" / "streamsplit_models",
}
SOURCES = sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.py"))
WITHOUT_COUNTERPART = {"attack", "data", "docs", "golden", "integration", "tools"}
"""Folders of tests that are about several files at once, or about none of a package."""

OF_NAMEDTUPLES = {"_replace", "_asdict", "_fields", "_make"}
CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "time", "time_ns"}
MAX_FILES, MAX_FILE_LINES, MAX_FUNCTION_LINES = 15, 400, 60

# Exceptions, each with its reason; one that is no longer needed fails the last test.
PRIVATE_ALLOWED = {
    "tests/runtime_edge/inference/test_tflite_backend.py": "TFLite says in no other way what runs on a delegate",
    "tests/streamsplit_compile/encoder/test_functional.py": "torch says in no other way which operators write in place",
    "tests/streamsplit_compile/lowering/test_fx_folding.py": "torch registers an operator for a test in no other way",
}
SLEEPS_ALLOWED = {
    "tests/attack/fleet.py": "nothing follows an attempt that has no effect: the broker is given a moment",
    "tests/attack/test_reply_subjects.py": "three brokers together say in no way that nothing is under way any more",
    "tests/data/waiting.py": "the one place where tests wait, with a deadline",
    "tests/integration/access/test_admission.py": "a connection may be lost for a moment only",
    "tests/integration/test_faults.py": "processes are killed at random moments",
    "tests/integration/test_operation.py": "a watchdog fires because nothing is heard for so many seconds",
}
TIMES_ALLOWED = {"tests/data/waiting.py": "the one place where tests wait, with a deadline"}
LONG_ALLOWED: dict[str, str] = {}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in OF_NAMEDTUPLES


def private_uses(path: Path) -> Iterator[str]:
    """Attributes of other objects, and names that are patched or imported, with a leading underscore."""
    for node in nodes_of(path):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield f"{relative(path)}:{node.lineno}: reads {node.attr}"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if any(is_private(part) for part in (*(node.module or "").split("."), alias.name)):
                    yield f"{relative(path)}:{node.lineno}: imports {alias.name}"
        elif isinstance(node, ast.Call) and called(node) in ("setattr", "getattr", "delattr", "object", "patch"):
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if any(is_private(part) for text in texts for part in text.split(".")):
                yield f"{relative(path)}:{node.lineno}: patches or reads {texts[0]}"


def called(node: ast.Call) -> str:
    """The last name of what is called."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def reads_clock(node: ast.AST, timed: set[str]) -> bool:
    """Whether an expression calls a clock or uses a variable that was worked out from one."""
    return any(
        (
            isinstance(inner, ast.Call)
            and isinstance(inner.func, ast.Attribute)
            and isinstance(inner.func.value, ast.Name)
            and inner.func.value.id == "time"
            and inner.func.attr in CLOCKS
        )
        or (isinstance(inner, ast.Name) and inner.id in timed)
        for inner in ast.walk(node)
    )


def timed_comparisons(path: Path) -> Iterator[str]:
    """Comparisons, within a function, with what a clock of the machine said."""
    for function in nodes_of(path):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        timed: set[str] = set()
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and reads_clock(node.value, timed):
                timed |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        for node in ast.walk(function):
            if isinstance(node, ast.Compare) and reads_clock(node, timed):
                yield f"{relative(path)}:{node.lineno}: compares times"


def fixed_sleeps(path: Path) -> Iterator[str]:
    """Sleeps that hope for something to happen meanwhile, or not to; waiting.py waits for what does happen."""
    for node in nodes_of(path):
        if not (isinstance(node, ast.Call) and called(node) == "sleep"):
            continue
        if ast.unparse(node.func) in ("time.sleep", "asyncio.sleep") and ast.unparse(node.args[0]) not in ("0", "0.0"):
            yield f"{relative(path)}:{node.lineno}: sleeps"


def too_long(path: Path) -> Iterator[str]:
    """A file or functions, with their decorators, of more lines than anybody reads at once."""
    if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_FILE_LINES:
        yield f"{relative(path)}: {lines} lines"
    for node in nodes_of(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min(line.lineno for line in (node, *node.decorator_list))
            lines = (node.end_lineno or 0) - first + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{relative(path)}:{node.lineno}: {node.name} has {lines} lines"


def without_source(path: Path) -> bool:
    """Whether tests/<package>/<room>/test_<file>[_<part>].py has no <package>/<room>/<file>.py to be about."""
    package, *rooms = path.relative_to(ROOT / "tests").parts[:-1]
    room, name = PACKAGES[package].joinpath(*rooms), path.stem.removeprefix("test_")
    return not any(name == file.stem or name.startswith(f"{file.stem}_") for file in room.glob("*.py"))


CHECKS = [
    (private_uses, TESTS, PRIVATE_ALLOWED),
    (timed_comparisons, TESTS, TIMES_ALLOWED),
    (fixed_sleeps, TESTS, SLEEPS_ALLOWED),
    (too_long, [*SOURCES, *TOOLS, *TESTS], LONG_ALLOWED),
]


def without(found: list[str], allowed: dict[str, str]) -> list[str]:
    return [line for line in found if line.split(":")[0] not in allowed]


@pytest.mark.parametrize(("check", "paths", "allowed"), CHECKS, ids=["private", "times", "sleeps", "long"])
def test_no_file_has_private_uses_timed_comparisons_fixed_sleeps_or_too_many_lines(check, paths, allowed) -> None:
    found = [line for path in paths for line in check(path)]
    assert without(found, allowed) == []
    assert {line.split(":")[0] for line in found} == set(allowed), "an exception is no longer needed"


def test_a_folder_holds_a_handful_of_files() -> None:
    counts = Counter(path.parent for path in SOURCES)
    assert {relative(folder): count for folder, count in counts.items() if count > MAX_FILES} == {}


def test_no_two_files_have_one_name() -> None:
    """A name that is used twice sends a reader to the wrong place; what has two parts says in its name which."""
    counts = Counter(path.name for path in SOURCES if not path.name.startswith("__"))
    assert [name for name, count in counts.items() if count > 1] == []


def imported(path: Path) -> Iterator[str]:
    """Top-level names of the packages that a file imports, wherever in it."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def same(name: str) -> str:
    """A distribution's name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_users_get_every_package_that_is_imported() -> None:
    """What only the extra `dev` brings is there for whoever writes this, and for nobody else."""
    needs = [Requirement(line) for line in requires("streamsplit-audio") or ()]
    declared = {same(need.name) for need in needs if need.marker is None or 'extra == "dev"' not in str(need.marker)}
    # Of nats-py[nkeys]; a part of Python since 3.14.
    declared |= {"nkeys", "compression"}
    distributions = packages_distributions()
    for path in SOURCES:
        for name in imported(path):
            if name not in sys.stdlib_module_names and name not in PACKAGES:
                given = {same(found) for found in (name, *distributions.get(name, ()))}
                assert given & declared, f"{relative(path)} imports {name}, which no extra for users brings"


def test_tests_mirror_the_packages() -> None:
    mirrors = [
        path
        for path in TESTS
        if path.name.startswith("test_") and path.relative_to(ROOT / "tests").parts[0] in PACKAGES
    ]
    assert len(mirrors) > 100
    assert [relative(path) for path in mirrors if without_source(path)] == []


def test_every_test_has_a_folder_that_says_what_it_is_about() -> None:
    known = {*PACKAGES, *WITHOUT_COUNTERPART}
    tops = {path.relative_to(ROOT / "tests").parts[0] for path in TESTS}
    assert {top for top in tops if not top.endswith(".py")} <= known


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (private_uses, "thing._x"),
        (private_uses, "monkeypatch.setattr('package.module._X', 1)"),
        (private_uses, "monkeypatch.setattr(module, '_X', 1)"),
        (private_uses, "from package import _x"),
        (timed_comparisons, "def test():\n    began = time.monotonic()\n    assert time.monotonic() - began < 1"),
        (timed_comparisons, "def test():\n    took = time.time() - began\n    assert took < 1"),
        (fixed_sleeps, "async def test():\n    await asyncio.sleep(0)\n    await asyncio.sleep(0.1)"),
        (too_long, "@options(\n" + "    1,\n" * MAX_FUNCTION_LINES + ")\ndef command():\n    pass"),
    ],
)
def test_what_is_looked_for_is_found(check, text, monkeypatch, tmp_path) -> None:
    path = tmp_path / "test_example.py"
    path.write_text(text)
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert len(list(check(path))) == 1
