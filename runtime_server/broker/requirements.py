"""What an outside broker must provide, and which of its settings to change if it does not."""

from __future__ import annotations

import logging

import nats.js.errors
from nats.js.api import StreamConfig

from runtime_edge.errors import LinkError
from runtime_edge.formats.wire import MAX_FRAME_BYTES
from runtime_server.broker.guarded_client import GuardedClient

_LOG = logging.getLogger(__name__)
_STORE_TOO_SMALL, _TOO_FEW_STREAMS = 10047, 10027
"""The broker's error codes for them."""


def check_offer(client: GuardedClient, url: str) -> None:
    """Raise LinkError if a broker has no JetStream; log a warning if it accepts only small frames."""
    if client.alone and not client.offers_jetstream:
        raise LinkError(f"broker {url}: JetStream is off there; start nats-server with -js and a --store_dir")
    if client.max_payload < MAX_FRAME_BYTES:
        _LOG.warning(
            "broker %s: takes frames of %d bytes at most; set max_payload: %d in its configuration",
            *(url, client.max_payload, MAX_FRAME_BYTES),
        )


def check_store(exc: Exception, config: StreamConfig, streams: int, url: str) -> None:
    """Raise LinkError if a stream could not be created because the broker's store is too small for it, or for all."""
    code = exc.err_code if isinstance(exc, nats.js.errors.APIError) else None
    if code == _TOO_FEW_STREAMS:
        raise LinkError(
            f"broker {url}: it admits too few streams: set max_streams of the account to {streams} at least, or leave "
            "it out"
        ) from None
    if code == _STORE_TOO_SMALL and config.max_bytes:
        needed = config.max_bytes >> 30
        raise LinkError(
            f"broker {url}: its JetStream store is too small: {config.name} reserves {needed} GiB; set max_file_store: "
            f"{2 * needed}GB in the jetstream block of its configuration, and max_file of the account, where it has one"
        ) from None
