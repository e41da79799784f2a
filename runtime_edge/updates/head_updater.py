"""Which head a device uses: the one given, or the newest on the broker, or the last one used."""

from __future__ import annotations

import contextlib
import logging

import msgspec
import numpy as np

from runtime_edge.config import DeviceConfig
from runtime_edge.errors import LinkError, SscError
from runtime_edge.formats.manifest import BundleInfo
from runtime_edge.formats.records.head import Head, entropy, read_head
from runtime_edge.formats.results import WindowResult
from runtime_edge.inference.engine import Embedding
from runtime_edge.transport.protocol import Transport
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.received_records import ReceivedRecords, RecordKind
from runtime_edge.updates.update_reports import UpdateReports

_LOG = logging.getLogger(__name__)
_BEST = 5
"""How many labels a result names, besides those detected."""


class HeadUpdater:
    """Labels results. Heads swap between windows, and each is used only on embeddings it was made for."""

    def __init__(
        self, config: DeviceConfig, connection: Transport | None, reports: UpdateReports, info: BundleInfo
    ) -> None:
        """Starts with the given head, or else with the last one used. Raises HeadError or SignatureError."""
        self._given, self._connection, self._reports, self._info = config.head is not None, connection, reports, info
        store = BundleStore(config.state, config.trusted)
        kind: RecordKind[Head] = RecordKind("head", Head.from_json)
        self._records = ReceivedRecords(kind, config, connection, store, reports)
        self._head: Head | None = None
        self._former: Head | None = None
        """The previous head: blocks of an earlier generation may run again."""
        self._early: tuple[Head, bytes] | None = None
        """A later head that came before its bundle: it does not fit what runs, or is for a later generation. Its record
        is kept on disk when it takes over."""
        if config.head is not None:
            head = read_head(config.head, store.trusted)
            head.check_fits(info, str(config.head))
            self._head = head
        else:
            self._load_kept()

    async def follow(self) -> None:
        """Use the broker's present head and watch for later ones, unless a head was given."""
        if self._given:
            return
        with contextlib.suppress(LinkError):
            for key, record in await self._records.present():
                await self._records.take(key, record, self._came)
        await self._records.watch(self._came)

    def label(
        self, result: WindowResult, info: BundleInfo, embedding: Embedding, exit_cut: str | None = None
    ) -> WindowResult:
        """The result of a window, labelled by its embedding (d,) if there is a head for its encoder.

        `exit_cut` is the cut of the exit that gave the embedding.
        """
        self._info = info
        self._swap(info)
        head = self._head
        if head is None or not head.fits(info):
            return result
        scores = head.scores(embedding, exit_cut)
        order = [
            place for place in np.argsort(-scores, kind="stable").tolist() if head.labels[place] != head.background
        ]
        unknown = head.is_unknown(embedding, exit_cut)
        detected = [] if unknown else head.reached(scores)
        shown = {*order[:_BEST], *detected}
        return msgspec.structs.replace(
            result,
            unknown=unknown,
            labels={head.labels[place]: round(float(scores[place]), 4) for place in order if place in shown},
            detected=[head.labels[place] for place in detected],
            head_generation=head.generations[1],
        )

    def _swap(self, info: BundleInfo) -> None:
        """Let a waiting head take over if its generation runs, or if there is no other head for this encoder.

        If an earlier generation runs again, the previous head does as well, until another one comes.
        """
        if self._early is not None and self._early[0].fits(info):
            head, record = self._early
            if head.generations[1] <= info.generation or self._head is None or not self._head.fits(info):
                self._former, self._head, self._early = self._head, head, None
                self._records.keep(record)
        former = self._former
        if self._head is None or self._head.generations[1] <= info.generation or former is None:
            return
        if former.fits(info) and former.generations[1] <= info.generation:
            self._head, self._former = former, self._head

    def entropy(self, info: BundleInfo, embedding: Embedding, exit_cut: str | None) -> float | None:
        """How undecided the head is about an embedding (d,), from 0 to 1; None without a head. From any thread."""
        head = self._head
        return (
            None if head is None or not head.fits(info) else entropy(head.scores(embedding, exit_cut), head.scores_by)
        )

    def _load_kept(self) -> None:
        """Load the last head used."""
        try:
            record = self._records.kept()
            if record is not None:
                source = str(self._records.path)
                head = self._records.open_kept(record, source)
                head.check_fits(self._info, source)
                self._head = head
        except SscError as exc:
            self._reports.count("head_refused", exc)

    async def _came(self, head: Head, record: bytes, source: str) -> bool:
        if head == self._head or (self._early is not None and head == self._early[0]):
            return False
        self._early = head, record
        head.check_fits(self._info, source)
        return False  # it is kept when it takes over
