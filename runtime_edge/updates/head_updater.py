"""Which head a device uses: one that was given, or the newest on the broker, or the last one used."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import msgspec
import numpy as np

from runtime_edge.base.files import read_bounded, write_atomic
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import HeadError, LinkError, SscError
from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.manifest import BundleInfo
from runtime_edge.formats.records.head import MAX_RECORD_BYTES, Head, open_head, read_head
from runtime_edge.formats.results import WindowResult
from runtime_edge.inference.engine import Embedding
from runtime_edge.transport.accounting import Accounting
from runtime_edge.transport.connection import Link
from runtime_edge.updates.bundle_store import BundleStore

_LOG = logging.getLogger(__name__)
_BEST = 5
"""Labels in one result."""


class Labelling:
    """Puts labels on results. Heads swap between windows, and one is used only on embeddings it was made for."""

    def __init__(self, config: DeviceConfig, link: Link | None, accounting: Accounting, info: BundleInfo) -> None:
        """Starts with the head given, or else with the last one used. Raises HeadError or SignatureError."""
        self._config, self._link, self._accounting, self._info = config, link, accounting, info
        self._own_key = subjects.table_key(config.target, config.device)
        self._own_head = False
        self._head: Head | None = None
        self._early: Head | None = None
        """A later one that does not fit what runs: it may have come before the bundle it is for."""
        if config.head is not None:
            head = read_head(config.head, self._store().trusted)
            head.check_fits(info, str(config.head))
            self._head = head
        elif self._kept.exists():
            self._take_up()

    async def follow(self) -> None:
        """Take what the broker has now and watch for later heads, unless one was given."""
        link = self._link
        if link is None or self._config.head is not None:
            return
        keys = [self._own_key, subjects.table_key(self._config.target)]
        with contextlib.suppress(LinkError):
            for key in keys if link.connected else []:
                record = await link.value(subjects.HEADS, key)
                if record is not None:
                    await self._on_head(key, record)
        await link.watch(subjects.HEADS, keys, self._on_head)

    def label(self, result: WindowResult, info: BundleInfo, embedding: Embedding) -> WindowResult:
        """The result of a window of an encoder, labelled by its embedding (d,) when there is a head for it."""
        self._info = info
        if self._early is not None and self._early.fits(info):
            self._head, self._early = self._early, None
        head = self._head
        if head is None or not head.fits(info):
            return result
        scores = head.scores(embedding)
        order = np.argsort(-scores, kind="stable").tolist()
        return msgspec.structs.replace(
            result,
            labels={head.labels[place]: round(float(scores[place]), 4) for place in order[:_BEST]},
            detected=[head.labels[place] for place in order if scores[place] >= head.thresholds[place]],
            head_generation=head.generations[1],
        )

    @property
    def _kept(self) -> Path:
        return self._config.state / "head.json"

    def _store(self) -> BundleStore:
        """Which key is trusted may have been learnt since the start."""
        return BundleStore(self._config.state, self._config.trusted)

    def _take_up(self) -> None:
        try:
            record = read_bounded(self._kept, MAX_RECORD_BYTES, HeadError)
            head = open_head(record, self._store().trusted, str(self._kept))
            head.check_fits(self._info, str(self._kept))
            self._head = head
        except SscError as exc:
            self._count(exc)

    async def _on_head(self, key: str, record: bytes) -> None:
        own = key == self._own_key
        if self._own_head and not own:
            return
        try:
            head = open_head(record, await self._trusted(), f"head {key}")
            if head in (self._head, self._early):
                return
            self._early = head
            head.check_fits(self._info, f"head {key}")
            self._own_head = own
            write_atomic(self._kept, record)
        except LinkError:
            raise  # the watch tries again
        except SscError as exc:
            await self._refuse(exc)
        except OSError as exc:
            _LOG.warning("the head cannot be kept: %s", exc)

    async def _trusted(self) -> minisign.PublicKey | None:
        """The key heads must be signed with: given, pinned, or pinned now because this is the first contact."""
        store = self._store()
        if store.trusted is None and self._link is not None:
            key = await self._link.value(subjects.RELEASES, subjects.SIGNING_KEY)
            if key is not None:
                store.pin(key.decode(errors="replace"))
        return store.trusted

    async def _refuse(self, exc: SscError) -> None:
        self._count(exc)
        if self._link is not None:
            body = {"event": "head_refused", "device": self._config.device, "reason": str(exc)[:500]}
            await self._link.publish(subjects.events(self._config.device), msgspec.json.encode(body))

    def _count(self, exc: SscError) -> None:
        self._accounting.errors[type(exc).__name__] += 1
        _LOG.warning("head refused: %s", exc)
