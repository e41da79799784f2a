"""The line of a server on a terminal."""

import asyncio
import contextlib
import io

from rich.console import Console

from runtime_server.serving.live_status import show_status, status_line

TOLD = {"generation": 3, "windows": {"pi-1": 1200, "pi-2": 34}, "training_steps": 45}


def test_a_line_has_devices_windows_their_rate_steps_and_troubles():
    assert (
        status_line({**TOLD, "troubles": []}, None, 1.0) == "generation 3, 2 devices, 1,234 windows, 45 training steps"
    )
    told = {**TOLD, "troubles": ["the broker is away"]}
    line = "generation 3, 2 devices, 1,234 windows (12 a second), 45 training steps, the broker is away"
    assert status_line(told, 1210, 2.0) == line


def test_it_is_written_until_it_is_ended_and_then_goes():
    class Status:
        def __init__(self):
            self.asked = asyncio.Event()

        def status(self):
            self.asked.set()
            return TOLD

        def own_troubles(self):
            return ["\x1b[2J"]

    async def work():
        status, console = Status(), Console(file=io.StringIO(), force_terminal=True, width=120)
        showing = asyncio.create_task(show_status(status, console, every_s=0.01))
        await status.asked.wait()
        await asyncio.sleep(0)
        showing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await showing
        return console.file.getvalue()

    said = asyncio.run(work())
    assert "1,234 windows" in said
    assert "?[2J" in said
    assert "\x1b[2J" not in said
