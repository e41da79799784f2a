"""Embeds a recording with a bundle's variants by the library call; the same file runs here and on the emulated machine.

python embed.py BUNDLE RECORDING VARIANT,... OUT.npz      prints as JSON what it ran on
"""

from __future__ import annotations

import json
import platform
import sys
import time
from typing import Any

import numpy as np
import psutil

import runtime_edge
from runtime_edge.audio import open_source


def main(bundle: str, recording: str, variants: str, out: str) -> None:
    """Write the embeddings (windows, d) float32 of each variant."""
    found: dict[str, Any] = {}
    window_s: dict[str, float] = {}
    for variant in variants.split(","):
        encoder = runtime_edge.open(bundle, variant=variant)
        waveform = np.concatenate([block.samples for block in open_source(recording, encoder.sample_rate)])
        started = time.monotonic()
        found[variant] = encoder.embed(waveform)
        window_s[variant] = (time.monotonic() - started) / len(found[variant])
    np.savez(out, **found)
    rss_mb = psutil.Process().memory_info().rss / 1e6
    print(json.dumps({"machine": platform.machine(), "rss_mb": rss_mb, "window_s": window_s}))


if __name__ == "__main__":
    main(*sys.argv[1:])
