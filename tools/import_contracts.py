"""A contract for import-linter: no package, and no room of one, loads a module of what is above it by a string.

`import_module("upper.module")`, `-m upper.module` and `"upper.module:attribute"` are imports that no linter of imports
sees. Text between words of a sentence, as in docstrings, is no such string.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class NoUpwardStringsContract(Contract):
    """`packages` from the top down: no string in one of them is the path of a module in one before it.

    A package may come after rooms of its own; then it stands for the rest of its files.
    """

    type_name = "no_upward_strings"

    packages = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Look at every string of every file but docstrings."""
        packages: list[str] = self.packages  # type: ignore[assignment]
        found = [
            f"{path}:{line}: {text!r}"
            for place, package in enumerate(packages)
            for path, line, text in strings_naming(package, packages[:place])
        ]
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """One line for each string."""
        for line in check.metadata["found"]:
            output.print_error(line)


def strings_naming(package: str, uppers: list[str]) -> Iterator[tuple[Path, int, str]]:
    """Files, lines and texts of a package's strings that name a module of `uppers`; without files that are theirs."""
    pattern = re.compile(rf"(^|\s)({'|'.join(map(re.escape, uppers))})(\.\w+)*(:\w+)?($|[\s;.(])") if uppers else None
    theirs = [folder for upper in uppers for folder in _folders(upper)]
    for folder in _folders(package):
        for path in sorted(folder.rglob("*.py")):
            if any(path.is_relative_to(other) for other in theirs):
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            sentences = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in sentences
                if is_text and pattern is not None and pattern.search(node.value):
                    yield path, node.lineno, node.value


def _folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or []]
