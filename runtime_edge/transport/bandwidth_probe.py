"""The bandwidth probe: a little filler between two pings finds out whether the link has become faster.

A device that ships small frames over a thin link learns nothing of the link's recovery. Only where a faster link would
change the cut it sends, right behind each frame, two pings and between them filler of at most SHARE of the uplink: how
much later the second answer comes is the filler's transfer time. Packets that waited for each other on the way arrive
together, as over a fast link: a rise is believed when more filler, right behind, shows it too, and yet more. Where the
round trip is long there is no time for that until the next window, and a clear rise is believed at once.
"""

from __future__ import annotations

from runtime_edge.transport.bandwidth import TELLING_BYTES

SHARE = 0.05
LARGEST_BYTES = 16_384
SMALLEST_BYTES = 512
CONFIRMATIONS, CONFIRMING = 2, 4


def filler_bytes(uplink_mbits: float, mbps_in_question: float | None, hop_s: float, frame_bytes: int) -> int:
    """Bytes of filler to send after a frame of `frame_bytes`; 0 when the frame is large enough itself, or no faster
    link would change the cut.
    """
    if mbps_in_question is None:
        return 0
    share = int(SHARE * uplink_mbits * 125_000 * hop_s)
    filler = min(max(share, SMALLEST_BYTES), LARGEST_BYTES)
    return 0 if frame_bytes >= max(filler, TELLING_BYTES) else filler


def confirming_bytes(filler_bytes: int) -> int:
    """Bytes of filler for the probe that confirms one of `filler_bytes`."""
    return min(CONFIRMING * filler_bytes, LARGEST_BYTES)
