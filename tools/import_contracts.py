"""A contract for import-linter: no package or sub-package loads a module of a package above it by a string.

`import_module("upper.module")`, `-m upper.module` and `"upper.module:attribute"` are imports that a linter of imports
does not see. Names within sentences, as in docstrings, do not count.
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
    """`packages` from the top down: no string in one of them may be the path of a module in an earlier one.

    A package may come after some of its own sub-packages; it then stands for the rest of its files.
    """

    type_name = "no_upward_strings"

    packages = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Check every string in every file except docstrings."""
        packages: list[str] = self.packages  # type: ignore[assignment]
        found = [
            f"{path}:{line}: {text!r}"
            for place, package in enumerate(packages)
            for path, line, text in strings_naming(package, packages[:place])
        ]
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print one line for each string."""
        for line in check.metadata["found"]:
            output.print_error(line)


def strings_naming(package: str, uppers: list[str]) -> Iterator[tuple[Path, int, str]]:
    """File, line and text of a package's strings that name a module of `uppers`, without the files of `uppers`."""
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
