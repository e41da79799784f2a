"""Parsers of a server's input from its broker, other ranks, power meter and earlier runs, for `tools.fuzz`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, cast

from runtime_edge.errors import FormatError
from tools.fuzz_files import directory, from_file

if TYPE_CHECKING:
    from nats.aio.client import Client

_SEQUENCE = 12
_METER = b"volts,time_s,watts\n"


def stream_size(data: bytes) -> object:
    """Parse the broker's information on the stream of frames."""
    from runtime_server.broker.stream_shares import StreamSize

    return StreamSize.from_json(data)


def api_answer(data: bytes) -> object:
    """Parse the broker's answer to a request."""
    from runtime_server.broker.upgrade import ApiAnswer

    return ApiAnswer.from_json(data, "$JS.API.STREAM.CREATE.ACTIVATIONS")


def stored_config(data: bytes) -> object:
    """Parse a stream's configuration as kept by a broker of an earlier version."""
    from runtime_server.broker.upgrade import stored_config as read

    return from_file(read, "meta.inf")(data)


def stream_sizes() -> list[bytes]:
    """The answer for a stream with frames, and a refusal."""
    return [
        b'{"type":"io.nats.jetstream.api.v1.stream_info_response","config":{"name":"ACTIVATIONS","max_bytes":4294967296},'
        b'"state":{"messages":3,"bytes":4096,"first_seq":1,"last_seq":3,"num_subjects":2}}',
        b'{"error":{"code":404,"err_code":10059,"description":"stream not found"}}',
    ]


def api_answers() -> list[bytes]:
    """A refusal and a success."""
    return [
        b'{"error":{"code":400,"err_code":10058,"description":"stream name already in use"}}',
        b'{"type":"io.nats.jetstream.api.v1.stream_create_response","did_create":true}',
    ]


def stored_configs() -> list[bytes]:
    """The configuration of a stream."""
    return [b'{"Created":"2026-01-02T03:04:05Z","name":"ACTIVATIONS","subjects":["act.>"],"max_bytes":4294967296}']


def direct_answer(data: bytes) -> object:
    """Parse a stored message as a broker sends it to a device: headers, an empty line, then the message."""
    from runtime_edge.transport.direct_get import value

    return asyncio.run(value(cast("Client", _Answering(data)), "tables", "_all.rpi4"))


def direct_answers() -> list[bytes]:
    """Answers with a value, a deleted value, and no value."""
    told = "NATS/1.0\r\nNats-Stream: KV_tables\r\nNats-Subject: $KV.tables._all.rpi4\r\nNats-Sequence: 7\r\n"
    stamp = "Nats-Time-Stamp: 2026-01-02T03:04:05.678901234Z\r\n"
    deleted = f"{told}KV-Operation: DEL\r\n{stamp}\r\n"
    return [f"{told}{stamp}\r\nvalue".encode(), deleted.encode(), b"NATS/1.0 404 Message Not Found\r\n\r\n"]


class _Answering:
    """A connection that answers every request with the same bytes, read as the library reads them."""

    def __init__(self, data: bytes) -> None:
        head, _, self._payload = data.partition(b"\r\n\r\n")
        status, *lines = head.decode(errors="replace").split("\r\n")
        pairs = (line.partition(": ") for line in lines)
        code = status.removeprefix("NATS/1.0")[:4].strip()
        self._headers = {name: value for name, _, value in pairs} | ({"Status": code} if code else {})

    def jetstream(self) -> object:
        """The library's JetStream context on this connection."""
        from nats.js import JetStreamContext

        return JetStreamContext(cast("Client", self))

    async def request(self, subject: str, payload: bytes = b"", timeout: float = 0.0) -> object:
        """The answer."""
        from nats.aio.client import Client
        from nats.aio.msg import Msg

        return Msg(Client(), subject, data=self._payload, headers=self._headers or None)


def rank_request(data: bytes) -> object:
    """Parse a request from the first rank to another."""
    from runtime_server.releases.followers import RankRequest

    return RankRequest.from_json(data)


def rank_answer(data: bytes) -> object:
    """Parse a rank's answer to the first rank, and process it as the first rank does."""
    from runtime_server.releases.followers import RankStatus, read_answer, together

    own = {
        "counters": {"windows": 2}, "windows": {"pi-1": 2}, "out_of_range": {}, "uptime_s": 3.0, "training_steps": 4,
        "ledger": {"damaged_lines": 1},
    }  # fmt: skip
    return together(own, {1: read_answer(data, RankStatus, 1)}, 2)


def rank_answers() -> list[bytes]:
    """A rank's status."""
    return [
        b'{"counters":{"windows":5,"refused":1},"windows":{"pi-2":5},"out_of_range":{"pi-2":3},"uptime_s":1.5,'
        b'"training_steps":4,"ledger":{"damaged_lines":2},"troubles":["the broker is away"],"generation":1}'
    ]


def suspect(data: bytes) -> None:
    """Parse the note of which frame a server was on when it crashed; one line of warning if it is unreadable."""
    from runtime_server.state.suspects import Suspects

    folder = directory() / "suspects"
    folder.mkdir(exist_ok=True)
    (folder / "0.trying.sha256").unlink(missing_ok=True)
    (folder / "0.trying").write_bytes(data)
    suspects = Suspects(folder, range(4))
    blamed = suspects.crashed_on(0, _SEQUENCE)
    with suspects.retrying_alone(0, _SEQUENCE):
        assert Suspects(folder, range(4)).crashed_on(0, _SEQUENCE), "the next crash goes unseen"
    if not blamed:
        raise FormatError("it names another frame, or none")


def meter(data: bytes) -> None:
    """Parse a power meter's log, written in two parts."""
    import math

    from runtime_server.telemetry.meter_log import MeterLog

    path = directory() / "meter.csv"
    path.write_bytes(data[: len(data) // 2])
    now = [1.0]
    with contextlib.suppress(FormatError):
        log = MeterLog(path, clock=lambda: now[0])
        now[0] = 5.0
        path.write_bytes(data)
        assert math.isfinite(log.joules())
        return
    path.write_bytes(data)
    assert math.isfinite(MeterLog(path, clock=lambda: now[0]).joules())


def meters() -> list[bytes]:
    """Readings of several seconds."""
    lines = b"".join(b"230,%d,5.5\n" % second for second in range(8))
    return [_METER + lines, b"time_s,watts\n" + b"0.5,3\n1.5,4e0\n4,0\n"]
