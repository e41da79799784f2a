"""The event loop's side of adaptation: whose windows train what, and sending what came of it.

service = AdaptationService(hub, key, PushedHeads(hub, key), targets, loop, known, generations, config)
ingest = Ingest(..., hear=service.hear)
jobs.start("adaptation", service.run())
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from torch import Tensor

from runtime_edge.base.aio import cancel_all
from runtime_edge.errors import LinkError
from runtime_edge.formats import minisign
from runtime_edge.formats.records.adaptation import Adaptation
from runtime_edge.formats.records.head import Head
from runtime_edge.formats.wire import NO_MODEL
from runtime_server.adaptation.adaptation_loop import AdaptationLoop, AdaptConfig
from runtime_server.adaptation.known_adaptations import KnownAdaptations, fits
from runtime_server.adaptation.recipient import Recipient, find_recipient, together
from runtime_server.broker.hub import Hub
from runtime_server.broker.pushed_heads import PushedHeads
from runtime_server.suffix.generations import Generations

_LOG = logging.getLogger(__name__)
_LOOK_S, _RETRY_S = 5.0, 2.0
_SHOWN = 5
"""Reasons in a status."""


class AdaptationService:
    """Adapts the devices of one server.

    Args:
        hub: the connection to the broker.
        key: signs the adaptations.
        heads: the heads that devices have.
        targets: returns the target that each present device has reported.
        loop: trains.
        known: keeps what is sent, for completing frames.
        generations: the weights that devices run.
        config: how devices are adapted.
    """

    def __init__(
        self,
        hub: Hub,
        key: minisign.SecretKey,
        heads: PushedHeads,
        targets: Callable[[], Mapping[str, str]],
        loop: AdaptationLoop,
        known: KnownAdaptations,
        generations: Generations,
        config: AdaptConfig,
    ) -> None:
        self._hub, self._key, self._heads, self._targets = hub, key, heads, targets
        self._loop, self._known, self._generations, self._config = loop, known, generations, config
        self._offered: asyncio.Queue[tuple[Recipient, Adaptation]] = asyncio.Queue()
        self._sent: Counter[str] = Counter()
        self._waits: list[str] = []
        self._recipients: dict[str, Recipient] = {}

    def hear(self, device: str, generation: int, window: Tensor, cut: int = 0, model: int = NO_MODEL) -> None:
        """Take a new window of a device, as `AdaptationLoop.hear` does. From any thread; never waits."""
        self._loop.hear(device, generation, window, cut, model)

    async def run(self) -> None:
        """Run until cancelled."""
        loop, pool = asyncio.get_running_loop(), ThreadPoolExecutor(1, "adapt")

        def offer(recipient: Recipient, adaptation: Adaptation) -> None:
            loop.call_soon_threadsafe(self._offered.put_nowait, (recipient, adaptation))

        training = loop.run_in_executor(pool, self._loop.run, offer)
        tasks = [asyncio.create_task(self._look_forever()), asyncio.create_task(self._send_forever())]
        try:
            await asyncio.gather(asyncio.shield(training), *tasks)
        finally:
            self._loop.stop()
            await cancel_all(tasks)
            await asyncio.to_thread(pool.shutdown)

    def status(self) -> dict[str, Any]:
        """What was heard, sent and refused since the start, and why devices are not adapted."""
        counts = self._loop.counts
        return {
            "method": self._config.method,
            "scope": self._config.scope,
            "together": [list(devices) for devices in self.groups().values() if len(devices) > 1][:_SHOWN],
            "windows": {use: counts[use] for use in ("training", "judging", "dropped", "unused")},
            **{outcome: counts[outcome] for outcome in ("refused", "withdrawn")},
            **{what: self._sent[what] for what in ("sent", "bytes")},
            "waits": self._waits[:_SHOWN],
        }

    def groups(self) -> dict[str, tuple[str, ...]]:
        """The devices of each recipient that windows train now, by its key."""
        found: dict[str, tuple[str, ...]] = {}
        for device, recipient in sorted(self._recipients.items()):
            found[recipient.key] = (*found.get(recipient.key, ()), device)
        return found

    async def _look_forever(self) -> None:
        while True:
            try:
                self._look(await self._heads.read())
            except LinkError as exc:
                _LOG.info("adaptation goes on with the heads it knows: %s", exc)
            await asyncio.sleep(_LOOK_S)

    def _look(self, heads: Mapping[str, Head]) -> None:
        """Find out whose adaptation each device's windows shape."""
        info = self._generations.newest.bundle.manifest.info
        found = {
            device: find_recipient(device, target, heads, info, self._config.scope, self._loop.founder(device))
            for device, target in self._targets().items()
        }
        recipients = {device: one for device, one in found.items() if isinstance(one, Recipient)}
        self._follow(together(recipients) if self._config.scope == "alike" else recipients)
        waits = sorted({why for why in found.values() if isinstance(why, str)})
        for why in waits[:_SHOWN]:
            if why not in self._waits:
                _LOG.warning("no adaptation: %s", why)
        self._waits = waits

    def _follow(self, recipients: Mapping[str, Recipient]) -> None:
        """Let windows train these; a device that has joined others gets what they have."""
        for device, recipient in recipients.items():
            before = self._recipients.get(device)
            latest = self._known.latest(recipient.key)
            joined = before is not None and before.key != recipient.key and device != recipient.device
            if joined and latest is not None and fits(latest, self._generations.newest):
                self._offered.put_nowait((replace(recipient, alike=(device,)), latest))
        self._recipients = dict(recipients)
        self._loop.follow(recipients)

    async def _send_forever(self) -> None:
        while True:
            recipient, adaptation = await self._offered.get()
            while True:
                try:
                    await self._send(recipient, adaptation)
                    break
                except (LinkError, OSError) as exc:
                    _LOG.warning("adaptation for %s waits: %s", recipient.key, exc)
                    await asyncio.sleep(_RETRY_S)

    async def _send(self, recipient: Recipient, adaptation: Adaptation) -> None:
        """Keep an adaptation, then publish it. Raises LinkError or OSError."""
        for one in recipient.each():
            if self._known.latest(one.key) != adaptation:
                await asyncio.to_thread(self._known.add, one.key, adaptation)
            size = await self._hub.put_adaptation(adaptation, self._key, one.target, one.device)
            self._sent.update({"sent": 1, "bytes": size})
            _LOG.info("adaptation for %s: %d layers, %d bytes", one.key, len(adaptation.layers), size)
