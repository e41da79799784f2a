"""The kernel's counters of a TCP connection (Linux: `tcp(7)`, TCP_INFO), and the bytes at the interface.

A program never sees the headers of its segments. The kernel counts segments and their bytes, which gives the bytes at
an Ethernet interface to within a few at the start and the end of a connection.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, NamedTuple

_ACKED = struct.Struct("=120x2Q2I")
"""bytes_acked, bytes_received, segs_out, segs_in: since Linux 4.2."""
_SENT = struct.Struct("=200xQ")
"""bytes_sent, including retransmissions: since Linux 4.19."""
_WANTED_BYTES = 256
_ETHERNET, _IP4, _IP6, _TCP, _TIMESTAMPS = 14, 20, 40, 20, 12


class Passed(NamedTuple):
    """Bytes on the interface, including all headers from Ethernet upwards."""

    up: int
    down: int


def passed(connection: Any) -> Passed | None:
    """What a connected socket has sent and received; None if the kernel does not say."""
    if not hasattr(socket, "TCP_INFO"):
        return None
    try:
        data: bytes = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _WANTED_BYTES)
        family = connection.family
    except OSError:  # the socket is closed
        return None
    if len(data) < _ACKED.size:
        return None
    acked, received, out_segments, in_segments = _ACKED.unpack_from(data)
    if not out_segments or not in_segments:  # a kernel that has these fields but leaves them empty
        return None
    sent = _SENT.unpack_from(data)[0] if len(data) >= _SENT.size else acked
    headers = _ETHERNET + (_IP6 if family == socket.AF_INET6 else _IP4) + _TCP + _TIMESTAMPS
    return Passed(sent + out_segments * headers, received + in_segments * headers)
