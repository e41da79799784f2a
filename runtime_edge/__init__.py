"""The device side of StreamSplit: run an encoder, or any prefix of it, from a compiled bundle.

    import runtime_edge
    embeddings = runtime_edge.open("bundle/").embed("rain.flac")                # or a waveform, and its sample_rate
    labels = runtime_edge.open("bundle/", head="head.json").classify("rain.flac")
    early = runtime_edge.open("bundle/", exit="features.7").embed("rain.flac")  # only the first blocks and the exit
    runtime_edge.run("mic", print, broker="nats://gateway:4222", target="rpi4")

Only numpy and one inference runtime are needed, plus soundfile to read files and soxr to resample; torch is never
imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime_edge.errors import installed_version
from runtime_edge.run_settings import RunSettings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from runtime_edge.api import EdgeEncoder
    from runtime_edge.device.sinks import Callback

__all__ = ["RunSettings", "__version__", "open", "run"]

__version__ = installed_version()


def open(  # noqa: A001
    path: str,
    pub: str | None = None,
    variant: str = "auto",
    threads: int = 1,
    head: str | None = None,
    exit: str | None = None,  # noqa: A002
) -> EdgeEncoder:
    """Open a bundle directory, optionally with a head file; with `pub` (a minisign public key file), it must have
    signed both.

    `variant` "auto" picks one that an installed runtime can run, float32 first. `exit` is the name of a cut: only the
    blocks up to it and its exit run, instead of the whole encoder.

    Raises UsageError, BundleError, HeadError, SignatureError, MissingExtra or BackendError.
    """
    from runtime_edge.api import open_encoder

    return open_encoder(path, pub, variant, threads, head, exit)


def run(source: str, on_result: Callback, **settings: Unpack[RunSettings]) -> dict[str, Any]:
    """Run the device loop of `ssc edge run` until the source ends; returns the run's report.

    Each window's WindowResult is passed to `on_result` on the loop's thread, so the callback must not block for long;
    an exception it raises is counted, not fatal. `settings` are those of the command and its file (`ssc edge config`
    prints them all), such as bundle, broker, target, head or max_windows. In an asyncio program, await
    `runtime_edge.device.device.Device(config, sinks).run()` instead.

    Raises SscError when the device cannot start.
    """
    from runtime_edge.api import run_device

    return run_device(source, on_result, dict(settings))
