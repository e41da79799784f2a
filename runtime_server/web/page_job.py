"""Starts the page of a server: its view of the fleet, and the thread that serves it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from runtime_edge.formats import minisign
from runtime_edge.formats.records.head import Head
from runtime_server.broker.hub import Hub
from runtime_server.broker.pushed_heads import pushed_heads
from runtime_server.labels.corrections import Corrections, corrections_path
from runtime_server.labels.device_clips import DeviceClips
from runtime_server.labels.moments import Moment, sent_at
from runtime_server.labels.sent_windows import SentWindow
from runtime_server.suffix.generations import Generations
from runtime_server.telemetry.fleet import Fleet
from runtime_server.telemetry.fleet_watch import watch_fleet
from runtime_server.web.page_data import PageData
from runtime_server.web.page_server import PageServer, WebAddress
from runtime_server.web.sounds import Sounds

_HEADS_S = 10.0
"""Time between two reads of the heads on the broker."""


async def start_page(
    address: WebAddress,
    state: Path,
    hub: Hub,
    key: minisign.PublicKey,
    status: Callable[[], Awaitable[Mapping[str, Any]]],
    generations: Generations,
) -> PageServer:
    """Serve the page of a server from now on. Raises UsageError, MissingExtra and LinkError."""
    fleet, known = Fleet(), (float("-inf"), dict[str, Head]())
    info = generations.newest.bundle.manifest.info

    def read(moment: Moment) -> Awaitable[list[SentWindow]]:
        return sent_at(hub, moment, info.front_end)

    async def heads() -> Mapping[str, Head]:
        nonlocal known
        if time.monotonic() - known[0] >= _HEADS_S:
            known = time.monotonic(), await pushed_heads(hub, key)
        return known[1]

    corrections = Corrections(corrections_path(state))
    sounds = await asyncio.to_thread(
        Sounds,
        lambda: fleet.events,
        read,
        DeviceClips(hub, info.front_end).windows,
        info.front_end,
        lambda: generations.newest.codecs,
        corrections,
    )
    page = PageServer(address, state, PageData(fleet, status, heads, sounds, bundle=info))
    await watch_fleet(hub, fleet)
    return page
