"""Accounts for the bytes on a device's interface, from packets down to the fields of frames and replies."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field

from runtime_edge.errors import FrameError
from runtime_edge.formats.wire import decode_frame, decode_replies
from runtime_server.harness.network import packets_in

UP, DOWN = "up", "down"
TCP_DATA, TCP_ALONE = "Ethernet, IP and TCP around data", "packets of TCP alone: acknowledgements"
LINE, ENVELOPE, FRAME, PAYLOAD = "the broker's line of a frame", "header of a frame", "frame around payloads", "payload"
STORED, ANSWER_LINE = "the broker's acknowledgement", "the broker's line of an answer"
ANSWER, EMBEDDING, MIXTURE = "answer around embeddings", "embedding", "mixture"
REST = "all else: pings, reports, news"
_MESSAGES = (b"PUB", b"HPUB", b"MSG", b"HMSG")
_OUTGOING = 4
"""Linux's `PACKET_OUTGOING`."""
_LONGEST_PACKET = 65536
_PATIENCE_S = 0.2


class Packet:
    """An Ethernet frame that contains TCP over IPv4. Raises ValueError for any other."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 54 or data[12:14] != b"\x08\x00" or data[23] != socket.IPPROTO_TCP:
            raise ValueError("not TCP over IPv4")
        start = 14 + 4 * (data[14] & 15)
        end = 14 + int.from_bytes(data[16:18], "big")
        self.sequence: int = struct.unpack_from(">I", data, start + 4)[0]
        self.data = data[start + 4 * (data[start + 12] >> 4) : end]
        self.around = len(data) - len(self.data)


class Conversation:
    """One direction of a connection to a broker, from a moment without data in transit; adds up its bytes by kind."""

    def __init__(self, parts: Counter[str]) -> None:
        self._parts, self._begun = parts, b""
        self._next: int | None = None

    def take(self, packet: Packet) -> None:
        """Count one packet."""
        if not packet.data:
            self._parts[TCP_ALONE] += packet.around
            return
        self._parts[TCP_DATA] += packet.around
        if self._next not in (None, packet.sequence):  # retransmitted
            self._parts[REST] += len(packet.data)
            return
        self._next = (packet.sequence + len(packet.data)) % (1 << 32)
        self._begun += packet.data
        while (end := self._begun.find(b"\r\n") + 2) > 1:
            words = self._begun[:end].split()
            is_message = bool(words) and words[0] in _MESSAGES
            stop = end + int(words[-1]) + 2 if is_message else end
            if stop > len(self._begun):
                return
            self._count(words, self._begun[:stop], end)
            self._begun = self._begun[stop:]

    def _count(self, words: list[bytes], message: bytes, line: int) -> None:
        parts, body = self._parts, message[line:-2]
        subject = words[1] if len(words) > 1 else b""
        with contextlib.suppress(FrameError):
            if words[0] == b"HPUB" and subject.startswith(b"act."):
                head = int(words[-2])
                windows = decode_frame(body[head:])
                payload = sum(len(payload) for _, payload in windows)
                parts[LINE] += line + 2
                parts[ENVELOPE] += head
                parts[FRAME] += len(body) - head - payload
                parts[PAYLOAD] += payload
                return
            if words[0] == b"MSG" and body.startswith(b'{"stream"'):
                parts[STORED] += len(message)
                return
            if words[0] == b"MSG" and subject.startswith(b"_INBOX."):
                replies = decode_replies(body)
                embeddings = sum(len(reply.embedding) for reply in replies)
                mixtures = sum(len(reply.mixture) for reply in replies)
                parts[ANSWER_LINE] += line + 2
                parts[ANSWER] += len(body) - embeddings - mixtures
                parts[EMBEDDING] += embeddings
                parts[MIXTURE] += mixtures
                return
        parts[REST] += len(message)


@dataclass
class Parts:
    """Counts bytes by kind on a namespace's interface during `with Parts(namespace, link) as parts`."""

    namespace: str
    link: str
    up: Counter[str] = field(default_factory=Counter)
    down: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> Parts:
        self._socket, self._ending = packets_in(self.namespace, self.link), threading.Event()
        self._socket.settimeout(_PATIENCE_S)
        self._thread = threading.Thread(target=self._listen, name="parts", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        ways = {UP: Conversation(self.up), DOWN: Conversation(self.down)}
        while not self._ending.is_set():
            try:
                data, address = self._socket.recvfrom(_LONGEST_PACKET)
            except TimeoutError:
                continue
            way = UP if address[2] == _OUTGOING else DOWN
            try:
                ways[way].take(Packet(data))
            except ValueError:
                getattr(self, way)[REST] += len(data)
