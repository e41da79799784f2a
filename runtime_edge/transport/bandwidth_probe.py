"""The bandwidth probe: a little filler between two pings shows whether the link has become faster.

A device that sends small frames over a slow link would not notice that the link has recovered. If a faster link would
change the cut, it sends two pings right after a frame, with filler of at most SHARE of the uplink between them: the
second answer is delayed by the filler's transfer time. Filler costs energy like any other byte, so a `FillerAllowance`
says after which frames: after every one where a faster link would gain much. Packets that queued on the way arrive
together, as they would over a fast link, so a rise is believed only if two more pairs, each with more filler, show it
too. If the round trip is too long for that before the next window, a clear rise is believed at once.
"""

from __future__ import annotations

from runtime_edge.transport.bandwidth import TELLING_BYTES

SHARE = 0.05
LARGEST_BYTES = 16_384
SMALLEST_BYTES = 512
CONFIRMATIONS, CONFIRMING = 2, 4
KEPT_EVERY_S, CAPPED_EVERY_S = 10.0, 60.0
"""Seconds between two bandwidth probes of a device that ships nothing, and of one limited by a cap."""


def filler_bytes(uplink_mbits: float, worth: float, hop_s: float, frame_bytes: int) -> int:
    """Bytes of filler to send after a frame of `frame_bytes`; 0 if the frame itself is large enough, or if no faster
    link would change the cut (`Splitter.filler_worth`).
    """
    if not worth:
        return 0
    share = int(SHARE * uplink_mbits * 125_000 * hop_s)
    filler = min(max(share, SMALLEST_BYTES), LARGEST_BYTES)
    return 0 if frame_bytes >= max(filler, TELLING_BYTES) else filler


def confirming_bytes(filler_bytes: int) -> int:
    """Bytes of filler for the bandwidth probe that confirms one of `filler_bytes`."""
    return min(CONFIRMING * filler_bytes, LARGEST_BYTES)


class FillerAllowance:
    """Bytes of filler that may be sent now. Each window adds what it is worth; there is never more than for one."""

    def __init__(self) -> None:
        self._bytes: float = LARGEST_BYTES

    def allows(self, filler: int, worth: float) -> bool:
        """Add a window's `worth` in bytes; take the filler if there is any and enough for it."""
        self._bytes = min(self._bytes + worth, LARGEST_BYTES)
        if not 0 < filler <= self._bytes:
            return False
        self._bytes -= filler
        return True


def probe_is_due(since_s: float, shipped: bool, capped: bool) -> bool:
    """Whether to send a bandwidth probe `since_s` after the uplink was last measured.

    One may go after each frame that is shipped. While windows are kept, nothing else would show that the link has
    recovered, so there is a probe now and then.
    """
    return since_s >= (CAPPED_EVERY_S if capped else 0.0 if shipped else KEPT_EVERY_S)
