"""Lends the clips that a device keeps: its server's page may play them, and learn from them, with `--lend-clips`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from runtime_edge.base.files import read_bounded
from runtime_edge.config import DeviceConfig
from runtime_edge.device.clip_keeper import clip_path
from runtime_edge.errors import FormatError, UsageError
from runtime_edge.formats import subjects
from runtime_edge.formats.records.clip import MAX_CLIP_BYTES, PIECE_BYTES, ClipPiece, ClipRequest
from runtime_edge.transport.protocol import Transport

_LOG = logging.getLogger(__name__)


class ClipLender:
    """Answers requests for pieces of clips.

    Args:
        directory: where the clips are kept.
        publish: sends a piece.
    """

    def __init__(self, directory: Path, publish: Callable[[bytes], Awaitable[None]]) -> None:
        self._directory, self._publish = directory, publish
        self._lent: tuple[Path | None, bytes] = None, b""
        """The clip that was asked for last."""

    async def asked(self, data: bytes) -> None:
        """Answer one request; one that cannot be read is ignored."""
        try:
            request = ClipRequest.decode(data)
        except FormatError as exc:
            _LOG.warning("%s", exc)
            return
        path = clip_path(self._directory, request.label, request.since)
        if self._lent[0] != path:
            self._lent = path, await asyncio.to_thread(_read, path)
        clip = self._lent[1]
        if not clip:
            self._lent = None, b""  # it may be written later
        piece = clip[request.offset : request.offset + PIECE_BYTES]
        answer = ClipPiece(asked=request.asked, offset=request.offset, size=len(clip), data=piece)
        await self._publish(answer.encode())


def lend_clips(config: DeviceConfig, connection: Transport | None) -> None:
    """Lend a device's clips from now on, if wanted. Raises UsageError if none are kept."""
    if not config.lend_clips:
        return
    if config.keep_clips is None:
        raise UsageError("lend_clips: there are none without keep_clips; give both")
    if connection is not None:
        lender = ClipLender(config.keep_clips, lambda data: connection.publish(subjects.clips(config.device), data))
        connection.on_request(subjects.clip_requests(config.device), lender.asked)


def _read(path: Path) -> bytes:
    """A clip's file; empty if there is none that can be lent."""
    try:
        return read_bounded(path, MAX_CLIP_BYTES) if path.exists() else b""
    except FormatError as exc:
        _LOG.warning("a clip cannot be lent: %s", exc)
        return b""
