"""The server: ingest, suffix, losses, training, releases (torch).

    head = runtime_server.train_head("clips/", "bundle/", out="head.json")
    runtime_server.serve("encoder.pt", "bundle/", state="server/", host="0.0.0.0")

The calls load torch; importing this package does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime_edge.errors import installed_version
from runtime_server.serving.serve_settings import ServeSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from torch import nn
    from typing_extensions import Unpack

    from runtime_edge.formats.bundle import Bundle
    from runtime_edge.formats.records.head import Head
    from runtime_server.server_calls import RunningServer

__all__ = ["ServeSettings", "__version__", "serve", "train_head"]

__version__ = installed_version()


def serve(
    encoder: str | PathLike[str] | nn.Module,
    bundle: str | PathLike[str],
    on_started: Callable[[RunningServer], None] | None = None,
    *,
    factory: str | None = None,
    sample_rate: int | None = None,
    front_end: str | None = None,
    unsafe_load: bool = False,
    **settings: Unpack[ServeSettings],
) -> dict[str, Any]:
    """Run a server until it is stopped, as `ssc server run` does; returns its last status.

    Once frames are served, `on_started` is called with a `RunningServer`, whose `stop()` stops the server. If it runs
    in the main thread, SIGINT and SIGTERM stop it too. `encoder` and the arguments about how to read it are as in
    `streamsplit_compile.compile`. `settings` are those of the command and its settings file, such as state, host, port
    or training; `ssc server config` prints them all.

    Raises SscError if the server cannot start or a part of it fails.
    """
    from runtime_server.server_calls import run_server

    return run_server(encoder, bundle, on_started, (factory, sample_rate, front_end, unsafe_load), dict(settings))


def train_head(
    clips: str | PathLike[str],
    bundle: str | PathLike[str] | Bundle,
    out: str | PathLike[str] | None = None,
    *,
    gate_db: float = -60.0,
    seed: int = 0,
    key: str | PathLike[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Head:
    """Train a head on labelled recordings, as `ssc server label` does, and write it to `out` if given.

    `clips` is a folder with one subfolder of recordings for each label, or a CSV with the columns file, label and
    optionally fold. The head is trained on the embeddings of `bundle`. `runtime_edge.open(..., head=out)` reads the
    file; with `key`, the file of a secret key, a signature is written beside it. Windows below `gate_db`, in decibels
    of full scale, are left out. `seed` chooses the folds held out for `head.validation`. `progress` is called with (the
    current phase, steps done, total steps).

    Recordings that cannot be read are left out and logged. Raises UsageError, FormatError or SourceError.
    """
    from runtime_server.server_calls import fit_on_clips

    return fit_on_clips(clips, bundle, out, gate_db, seed, key, progress)
