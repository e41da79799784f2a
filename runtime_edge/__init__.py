"""The device side of StreamSplit: run an encoder, or any prefix of it, from a compiled bundle.

    import runtime_edge
    embeddings = runtime_edge.open("bundle/").embed(waveform)

Only numpy and one inference runtime are needed; torch is never imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime_edge.library import EdgeEncoder

__all__ = ["open"]


def open(path: str, pub: str | None = None, variant: str = "auto", threads: int = 1) -> EdgeEncoder:  # noqa: A001
    """Open a bundle directory; with `pub` (a minisign public key file) only if that key signed it.

    `variant` "auto" takes what an installed runtime can run, float32 first.

    Raises BundleError, SignatureError, MissingExtra or BackendError.
    """
    from runtime_edge.library import open_encoder

    return open_encoder(path, pub, variant, threads)
