"""The library calls behind `runtime_server.serve` and `runtime_server.train_head`."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime_edge.errors import UsageError
from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.model_id import model_digest
from runtime_edge.formats.records.head import Head, write_head
from runtime_edge.settings import from_call
from runtime_server.labels.head_training import fit_head
from runtime_server.labels.labelled import Progress, is_events, of_clips, read_clips
from runtime_server.server import Server
from runtime_server.serving.server_settings import ServerSettings
from runtime_server.serving.server_status import ServerParts
from runtime_server.training.ranks import Ranks
from streamsplit_compile.compile_calls import Encoder, read_encoder

Path_ = str | os.PathLike[str]


@dataclass(frozen=True)
class RunningServer:
    """A server that is serving frames."""

    url: str
    """Where devices connect."""
    public_key: minisign.PublicKey
    """The public half of its signing key."""
    page: str | None
    """The page's address, if a page was asked for."""
    stop: Callable[[], None]
    """Finish the work in progress and end; can be called from any thread."""


def run_server(
    encoder: Encoder,
    bundle: Path_,
    on_started: Callable[[RunningServer], None] | None,
    loading: tuple[str | None, int | None, str | None, bool],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """See `runtime_server.serve`."""
    chosen = from_call(ServerSettings, settings, "runtime_server.serve")
    loaded = read_encoder(encoder, *loading)
    ranks = Ranks.join()
    try:
        return asyncio.run(_serve(Server(loaded, chosen.config(Path(bundle), loaded.untrained), ranks), on_started))
    finally:
        ranks.leave()


async def _serve(server: Server, on_started: Callable[[RunningServer], None] | None) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    if threading.current_thread() is threading.main_thread():
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, server.stop)

    def stop() -> None:
        loop.call_soon_threadsafe(server.stop)

    def started(parts: ServerParts) -> None:
        if on_started is not None:
            page = None if server.page is None else server.page.url
            on_started(RunningServer(server.url, parts.loaded.key.public, page, stop))

    return await server.run(started)


def fit_on_clips(
    clips: Path_,
    bundle: Path_ | Bundle,
    out: Path_ | None,
    gate_db: float,
    seed: int,
    key: Path_ | None,
    progress: Progress | None,
) -> Head:
    """See `runtime_server.train_head`."""
    source, opened = Path(clips), bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    secret = None if key is None else minisign.read_secret_key(Path(key))
    if is_events(source):
        raise UsageError(f"{source}: names what devices have sent, which a server has; use `ssc server label {source}`")
    examples = of_clips(read_clips(source), opened, gate_db, progress or (lambda what, done, total: None))
    head = fit_head(
        examples, opened.manifest.info.encoder.id, "runtime_server.train_head", seed, model_digest(opened.manifest)
    )
    if out is not None:
        write_head(Path(out), head, secret)
    return head
