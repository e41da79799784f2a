"""Upgrades streams of an earlier version, which are in the broker's unnamed account.

A broker that runs alone finds the streams at their new place by itself. The brokers of a cluster keep a shared list of
their streams under the unnamed account; so each broker starts over with a copy of the streams, and announces them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec

from runtime_edge.base.broker_errors import BROKER_ERRORS
from runtime_edge.errors import FormatError, LinkError
from runtime_edge.formats.credentials import Address
from runtime_edge.formats.strict import decode, read
from runtime_server.broker.accounts import SERVER_ACCOUNT
from runtime_server.broker.hub import Hub

_LOG = logging.getLogger(__name__)
_UNNAMED, _SYSTEM = "$G", "$SYS"
_PATIENCE_S, _AGAIN_S, _REQUEST_S = 300.0, 0.5, 5.0
_THERE = (10058, 10148)
"""The broker's error codes for a stream, and a consumer, that another broker of the cluster has already announced."""
_MAX_BYTES = 1 << 20


class _ApiError(msgspec.Struct):
    err_code: int = 0
    description: str = ""


class ApiAnswer(msgspec.Struct):
    """The broker's answer to a request: only the error, if there is one."""

    error: _ApiError | None = None

    @classmethod
    def from_json(cls, data: bytes, subject: str) -> ApiAnswer:
        """Raises LinkError."""
        return decode(data, cls, f"the broker's answer to {subject}", _MAX_BYTES, LinkError)


def upgrade_store(store: Path, clustered: bool) -> bool:
    """Move an earlier version's streams to where the server's account keeps its own; returns whether there were any.

    In a cluster the streams are copied, and the old ones stay where they were: nothing reads them any more.
    """
    former, present = store / _UNNAMED, store / SERVER_ACCOUNT
    if present.exists() or not (former / "streams").is_dir():
        return False
    if not clustered:
        former.rename(present)
        return True
    begun = store.parent / f"{SERVER_ACCOUNT}.partial"
    shutil.rmtree(begun, ignore_errors=True)
    shutil.copytree(former, begun)
    shutil.rmtree(store / _SYSTEM, ignore_errors=True)
    begun.rename(present)
    return True


async def announce(store: Path, address: Address) -> None:
    """Announce the streams and consumers in this broker's store to the cluster, once enough of its brokers are up."""
    requests = list(_requests(store / SERVER_ACCOUNT / "streams"))
    deadline, hub = time.monotonic() + _PATIENCE_S, Hub(address, "upgrade")
    while requests and time.monotonic() < deadline:
        try:
            if not hub.client.is_connected:
                await hub.connect()
            while requests:
                await _told(hub, *requests[0])
                requests.pop(0)
        except (LinkError, *BROKER_ERRORS) as exc:
            _LOG.info("streams of an earlier version wait for the other brokers: %s", exc)
            await asyncio.sleep(_AGAIN_S)
    await hub.close()
    if requests:
        _LOG.error(
            "%s: of an earlier version, and the cluster does not accept it; `%s` is kept", requests[0][0], _UNNAMED
        )
    else:
        _LOG.warning("the streams of an earlier version are taken over; remove %s when all is well", store / _UNNAMED)


def _requests(streams: Path) -> list[tuple[str, dict[str, Any]]]:
    """Subject and body of the requests that create each stream, followed by its consumers."""
    found = []
    for stream in sorted(streams.glob("*/meta.inf")):
        name = stream.parent.name
        if (config := _config(stream)) is None:
            continue
        found.append((f"$JS.API.STREAM.CREATE.{name}", config))
        for consumer in sorted(stream.parent.glob("obs/*/meta.inf")):
            config = _config(consumer) or {}
            if durable := config.get("durable_name"):
                body = {"stream_name": name, "config": config}
                found.append((f"$JS.API.CONSUMER.DURABLE.CREATE.{name}.{durable}", body))
    return found


def _config(path: Path) -> dict[str, Any] | None:
    try:
        return stored_config(path)
    except FormatError as exc:
        _LOG.error("%s; what it describes is left out", exc)
        return None


def stored_config(path: Path) -> dict[str, Any]:
    """The configuration that a broker has stored for a stream or a consumer. Raises FormatError."""
    config = read(path, dict[str, Any], _MAX_BYTES)
    return {name: value for name, value in config.items() if name not in ("Created", "created")}


async def _told(hub: Hub, subject: str, body: dict[str, Any]) -> None:
    answer = await hub.client.request(subject, json.dumps(body).encode(), timeout=_REQUEST_S)
    error = ApiAnswer.from_json(answer.data, subject).error
    if error is not None and error.err_code not in _THERE:
        raise LinkError(f"{subject}: {error.description}")
