"""Simulates many devices: sends recorded activations to a real broker as devices do, at a steady rate.

    python -m tools.server_load --broker nats://127.0.0.1:4222 --bundle bundle/ --cut 1 --rate 500 --seconds 30

Every device publishes one window after the other without waiting, and receives the broker's acknowledgement and the
server's answer for each. Prints as JSON how many were stored and answered, and how long answers took.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
from nats.aio.client import Client

from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.codec import CutCodec
from runtime_edge.formats.wire import decode_replies, encode_frame
from runtime_edge.inference.prefix import Prefix
from runtime_edge.transport.fast_client import DirectClient
from streamsplit_compile.bundle.soundscape import soundscape

_PATIENCE_S = 30.0
_INBOX, _STORED = "_INBOX", "stored"
_ANSWER = re.compile(rb"MSG _INBOX\.")


class RecordedFrames:
    """Frames of recorded sound at one cut, and the names of the devices that ship them."""

    def __init__(
        self, bundle: Bundle, cut: int, devices: int, windows: int = 64, encoding: str = "int8",
        encode: Callable[..., bytes] = encode_frame, identity_header: str = "",
    ) -> None:  # fmt: skip
        """An `identity_header` is added as by devices of earlier versions."""
        info = bundle.manifest.info
        front, self.generation, self.cut, self.encoding = info.front_end, info.generation, cut, encoding
        seconds = (front.window_samples + windows * front.hop_samples) / front.sample_rate
        audio = soundscape(seconds, front.sample_rate, seed=0)
        codec, prefix = CutCodec(info.cuts[cut], encoding), Prefix(bundle)
        self.payloads: list[tuple[bytes, bool]] = []
        self.activations = np.empty((windows, *info.cuts[cut].shape[1:]), np.float32)
        for number in range(windows):
            start = number * front.hop_samples
            prefix.start(audio[start : start + front.window_samples])
            payload, compressed = codec.encode(prefix.advance(cut))
            self.payloads.append((bytes(payload), compressed))
            self.activations[number] = codec.decode(payload, compressed)[0]
        self._encode, self._identity_header = encode, identity_header
        self.devices = [f"load-{number}" for number in range(devices)]
        self._boot = secrets.token_hex(4)
        self._next = Counter[str]()

    def message(self, device: str, connection: str = "bulk") -> tuple[int, bytes, dict[str, str]]:
        """The next window of a device: its index, its frame, and the headers to send."""
        window = self._next[device]
        self._next[device] += 1
        payload, compressed = self.payloads[window % len(self.payloads)]
        frame = self._encode(window, time.time_ns(), self.generation, self.cut, self.encoding, compressed, 0.5, payload)
        message_id = subjects.message_id(device, self._boot, window)
        if not self._identity_header:
            return window, frame, subjects.envelope(message_id, device, connection)
        reply = f"{subjects.inbox(device)}.{connection}.{window}"
        return window, frame, {self._identity_header: message_id, subjects.REPLY_HEADER: reply}


async def fill(client: Client, recorded: RecordedFrames, count: int, under_way: int = 256) -> None:
    """Put `count` frames of the devices in turn into the stream; all are stored when this returns."""
    stream = client.jetstream(publish_async_max_pending=under_way)
    for number in range(count):
        device = recorded.devices[number % len(recorded.devices)]
        _, frame, headers = recorded.message(device)
        await stream.publish_async(subjects.frames(device), frame, wait_stall=_PATIENCE_S, headers=headers)
    await stream.publish_async_completed()


class AnswerCounter:
    """Counts the answers to all devices from raw bytes: the library's client would take more time than the server."""

    def __init__(self) -> None:
        self.count = 0
        self._rest = b""

    @contextlib.asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[AnswerCounter]:
        """Count while the context lasts."""
        reader, writer = await asyncio.open_connection(host, port)
        await reader.readline()  # the broker's INFO
        writer.write(b'CONNECT {"verbose":false}\r\nSUB _INBOX.*.bulk.* 1\r\nPING\r\n')
        while await reader.readline() != b"PONG\r\n":
            pass
        task = asyncio.create_task(self._read(reader, writer))
        try:
            yield self
        finally:
            task.cancel()
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 18):
            if data.endswith(b"PING\r\n"):
                writer.write(b"PONG\r\n")
            data = self._rest + data
            self.count += len(_ANSWER.findall(data))
            self._rest = data[-10:]  # one byte less than the searched bytes


class Load:
    """The answers to the frames that were sent, counted as they are read off the wire.

    The sender runs on the server's machine and takes time from it, so it does as little as possible.
    """

    def __init__(self) -> None:
        self.sent: dict[tuple[str, int], float] = {}
        """When each unanswered frame was due, by device and window, in monotonic seconds."""
        self.took_ms: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.stored = self.refused = 0
        """Counts of frames that the broker has stored and refused."""

    def receive(self, token: str, data: bytes, status: str) -> None:
        """Take an answer `<device>.live.<window>`, or the broker's acknowledgement `stored.<number>`."""
        where, _, rest = token.partition(".")
        if where == _STORED:
            refused = bool(status) or b'"error"' in data
            self.refused += refused
            self.stored += not refused
        elif rest.startswith("live."):
            (reply,) = decode_replies(data)
            due = self.sent.pop((where, reply.window), None)
            if due is not None:
                self.statuses[reply.status] += 1
                self.took_ms.append((time.monotonic() - due) * 1e3)


async def drive(broker: str, recorded: RecordedFrames, rate: float, seconds: float) -> dict[str, Any]:
    """Send `rate` frames a second for `seconds`, evenly spread over the devices, each at its own time."""
    load = Load()
    client = DirectClient(load.receive, _INBOX)
    await client.connect(broker, name="load")
    await client.subscribe(f"{_INBOX}.*.live.*")
    await client.subscribe(f"{_INBOX}.{_STORED}.*")
    await client.flush()
    began, late_s = time.monotonic(), 0.0
    moments = np.sort(np.random.default_rng(0).uniform(0, seconds, int(rate * seconds))).tolist()
    devices = (np.random.default_rng(1).permutation(len(moments)) % len(recorded.devices)).tolist()
    for number, (moment, place) in enumerate(zip(moments, devices, strict=True)):
        if (wait := began + moment - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        late_s = max(late_s, -wait)
        device = recorded.devices[place]
        window, frame, headers = recorded.message(device, "live")
        load.sent[device, window] = began + moment
        client.write_message(subjects.frames(device), frame, f"{_INBOX}.{_STORED}.{number}", headers)
    elapsed_s = time.monotonic() - began
    deadline = time.monotonic() + _PATIENCE_S
    while (load.sent or load.stored + load.refused < len(moments)) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    await client.close()
    return {
        "stored": load.stored,
        "refused": load.refused,
        "rate": len(moments) / elapsed_s,
        "statuses": dict(load.statuses),
        "unanswered": len(load.sent),
        "generator_late_ms": late_s * 1e3,
        "generator_cpu": time.process_time() / elapsed_s,
        **{f"p{share}_ms": float(np.percentile(load.took_ms, share)) for share in (50, 95, 99)},
    }


def main() -> None:
    """Send the frames and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--cut", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="frames a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--devices", type=int, default=200)
    options = parser.parse_args()
    recorded = RecordedFrames(open_bundle(options.bundle), options.cut, options.devices)
    print(json.dumps(asyncio.run(drive(options.broker, recorded, options.rate, options.seconds))))


if __name__ == "__main__":
    main()
