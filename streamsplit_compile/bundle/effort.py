"""Estimates what a compile will cost on this machine, before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streamsplit_compile.cost.cost_model import BlockWork

LONG_SECONDS = 60.0
MUCH_BYTES = 2e9
_WEIGHT_COPIES = 10
"""The most copies of the weights in memory at once: encoder, graph, files being written and loaded blocks."""
_LIBRARIES_BYTES = 5e8
_ENCODINGS = 3
"""How many encodings each cut is checked in."""


@dataclass(frozen=True)
class Effort:
    """A guess, good to a factor of two or three."""

    seconds: float
    """Time to run the encoder, which dominates a long compile."""
    peak_bytes: float

    @property
    def notice(self) -> str | None:
        """One line if the effort is worth a warning; otherwise None."""
        if self.seconds < LONG_SECONDS and self.peak_bytes < MUCH_BYTES:
            return None
        minutes = max(1, round(self.seconds / 60))
        return (
            f"compiling will take about {minutes} min or more and {self.peak_bytes / 1e9:.1f} GB of memory; "
            "fewer --cuts, --windows or --precision take less"
        )


def expected_effort(blocks: Sequence[BlockWork], encoder_ms: float, windows: int, variants: int) -> Effort:
    """The effort to compile an encoder of these blocks that takes `encoder_ms` for a window, checked on `windows`.

    Every variant runs once, and the encoder in torch completes it from each cut and in each encoding.
    """
    whole = max(1, sum(block.macs for block in blocks))
    behind = [sum(block.macs for block in blocks[index:]) / whole for index in range(len(blocks))]
    runs = 1 + variants * (1 + _ENCODINGS * sum(behind))
    weights = sum(block.weight_bytes for block in blocks)
    return Effort(encoder_ms / 1e3 * windows * runs, _LIBRARIES_BYTES + _WEIGHT_COPIES * weights)
