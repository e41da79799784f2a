"""Which processor this is, and whether it belongs to a target."""

from __future__ import annotations

import platform
import re
from pathlib import Path

PROC = Path("/proc")
_ARM = ("aarch64", "arm64", "armv7l", "armv8l")
_TARGETS = {
    "rpi4": (r"Raspberry Pi (Compute Module )?4", _ARM),
    "rpi5": (r"Raspberry Pi (Compute Module )?5", _ARM),
    "rpi-zero-2w": (r"Raspberry Pi Zero 2", _ARM),
    "jetson-orin-nano": (r"Orin Nano", _ARM),
    "m2": (r"Apple.*\bM2\b", _ARM),
    "x86-64": (r"", ("x86_64", "AMD64")),
}
"""Names and architectures of the board or processor of each target that comes with the package."""


def processor(proc: Path = PROC) -> str:
    """The board's name for itself, else the processor's; empty if neither gives one."""
    for name, wanted in (("device-tree/model", r"([^\0\n]+)"), ("cpuinfo", r"(?m)^model name\s*:\s*(.+)$")):
        try:
            found = re.search(wanted, (proc / name).read_text(errors="replace"))
        except OSError:
            continue
        if found is not None:
            return found[1].strip()
    return platform.processor()


def is_target(target: str, name: str, architecture: str) -> bool:
    """Whether a processor of this name and architecture may be a target's; True for a user's own target."""
    if target not in _TARGETS:
        return True
    called, architectures = _TARGETS[target]
    return architecture in architectures and (not name or re.search(called, name) is not None)
