"""A small file system, to see what happens when a disk is full."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[bool]:
    """Mount one of `megabytes` at an empty directory while the context lasts; yields whether it could be mounted, which
    needs root on Linux.
    """
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    try:
        mounted = not subprocess.run(command, check=False, capture_output=True).returncode
    except FileNotFoundError:  # a system without mount
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=True)
