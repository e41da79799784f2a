"""Finds the line of the user's own code that a torch error comes from."""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from pathlib import Path

import torch
from torch import fx

_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parent.parent)
_PYTHON = sysconfig.get_paths()["stdlib"]
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def line_of_error(exc: BaseException) -> str | None:
    """The user's line that raised an error: `net.py, line 12: if x.mean() > 0:`; None if user code was not running."""
    for frame in reversed(traceback.extract_tb(exc.__traceback__)):
        if _is_users(frame.filename) and frame.lineno is not None:
            return _line(frame.filename, frame.lineno)
    return None


def line_of_node(node: fx.Node) -> str | None:
    """The line of the user's code that a node comes from; None if an archive does not say."""
    for filename, number in reversed(_FRAME.findall(str(node.meta.get("stack_trace") or ""))):
        if _is_users(filename):
            return _line(filename, int(number))
    return None


def with_line(node: fx.Node) -> str:
    """A node's name, with the line of the user's code if it is known."""
    line = line_of_node(node)
    return f"node {node.name}" + (f" ({line})" if line else "")


def _is_users(filename: str) -> bool:
    if filename.startswith(_PYTHON) and "site-packages" not in filename:
        return False
    return not filename.startswith((_TORCH, _OURS, "<"))


def _line(filename: str, number: int) -> str:
    text = linecache.getline(filename, number).strip()
    return f"{Path(filename).name}, line {number}" + (f": {text}" if text else "")
