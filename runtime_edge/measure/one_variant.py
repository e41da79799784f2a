"""The child process of `ssc bench device`: measures one variant, and reports it in one line of JSON.

If energy is counted, it prints `started` before each block, waits for a line, runs the block over and over, and
answers with how often and for how long; the meter belongs to the parent.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from runtime_edge.errors import SscError
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.measure.variant_times import Configuration, measure_variant


def main(asked: str) -> None:
    """Measure what the parent asks for."""
    said = json.loads(asked)

    def repeat(once: Callable[[], None]) -> None:
        print("started", flush=True)
        sys.stdin.readline()
        began, count = time.perf_counter(), 0
        while (seconds := time.perf_counter() - began) < said["block_s"] or not count:
            once()
            count += 1
        print(json.dumps([count, seconds]), flush=True)

    try:
        found = measure_variant(
            open_bundle(Path(said["bundle"])),
            Configuration(**said["configuration"]),
            said["runs"],
            repeat if said["block_s"] else None,
        )
    except SscError as exc:
        sys.exit(str(exc))
    print(msgspec.json.encode(found).decode(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
