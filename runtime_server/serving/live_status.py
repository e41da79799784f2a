"""One line on a terminal that says what a server is doing."""

from __future__ import annotations

import asyncio
from typing import Any

from rich.console import Console
from rich.text import Text

from runtime_edge.base.text import printable
from runtime_server.serving.server_status import ServerStatus

_EVERY_S = 1.0


async def show_status(status: ServerStatus, console: Console | None = None, every_s: float = _EVERY_S) -> None:
    """Rewrite the line until cancelled, then remove it."""
    before: int | None = None
    with (console or Console(stderr=True)).status("") as line:
        while True:
            told = {**status.status(), "troubles": status.own_troubles()}
            line.update(Text(printable(status_line(told, before, every_s))))
            before = sum(told["windows"].values())
            await asyncio.sleep(every_s)


def status_line(told: dict[str, Any], windows_before: int | None, seconds: float) -> str:
    """A status as one line; `windows_before` is the number of windows `seconds` ago."""
    windows = sum(told["windows"].values())
    rate = "" if windows_before is None else f" ({(windows - windows_before) / seconds:.0f} a second)"
    parts = [
        f"generation {told['generation']}",
        f"{len(told['windows'])} devices",
        f"{windows:,} windows{rate}",
        f"{told['training_steps']:,} training steps",
    ]
    return ", ".join([*parts, *told["troubles"]])
