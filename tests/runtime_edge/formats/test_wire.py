import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime_edge.errors import FrameError
from runtime_edge.formats import wire
from runtime_edge.formats.codec import ENCODINGS
from runtime_edge.formats.wire import MAX_HEADER_BYTES, Reply, decode_frame, decode_reply, encode_frame, encode_reply

frames = st.fixed_dictionaries(
    {
        "window": st.integers(0, 2**40 - 1),
        "capture_ns": st.integers(0, 2**63 - 1),
        "generation": st.integers(0, 2**32 - 1),
        "cut": st.integers(0, 2**16 - 1),
        "encoding": st.sampled_from(ENCODINGS),
        "compressed": st.booleans(),
        "uncertainty": st.floats(0, 1),
        "payload": st.binary(max_size=100),
    }
)
LARGEST = {
    "window": 2**40 - 1,
    "capture_ns": 2**63 - 1,
    "generation": 2**32 - 1,
    "cut": 2**16 - 1,
    "encoding": ENCODINGS[-1],
    "compressed": True,
    "uncertainty": 1 / 3,
    "payload": b"",
}
replies = st.builds(
    Reply,
    version=st.just(1),
    window=st.integers(0, 2**40 - 1),
    generation=st.integers(0, 2**32 - 1),
    status=st.sampled_from(["ok", "retired", "refused"]),
    server_us=st.integers(0, 2**53),
    embedding=st.binary(max_size=300),
    mixture=st.binary(max_size=300),
)
FRAME = encode_frame(**{**LARGEST, "payload": bytes(range(64))})


@given(frames)
@example(LARGEST)
def test_a_frame_survives_the_wire(fields):
    frame = encode_frame(**fields)
    header, payload = decode_frame(frame)
    assert payload == fields["payload"]
    assert header.encoding == ENCODINGS.index(fields["encoding"])
    for name in fields.keys() - {"payload", "encoding"}:
        assert getattr(header, name) == fields[name]
    assert len(frame) - len(payload) <= MAX_HEADER_BYTES


@given(frames)
def test_the_same_window_gives_the_same_frame(fields):
    assert encode_frame(**fields) == encode_frame(**fields)


@settings(max_examples=500)
@given(st.binary(max_size=150))
def test_garbage_is_refused(data):
    with pytest.raises(FrameError):
        decode_frame(data)
    with pytest.raises(FrameError):
        decode_reply(data)


def test_every_changed_byte_is_noticed_or_changes_the_header_alone():
    original, _ = decode_frame(FRAME)
    for position in range(len(FRAME)):
        for bit in range(8):
            changed = bytearray(FRAME)
            changed[position] ^= 1 << bit
            try:
                header, payload = decode_frame(bytes(changed))
            except FrameError:
                continue
            assert position < FRAME[0] + 1
            assert header != original
            assert payload == FRAME[FRAME[0] + 1 :]


def test_a_truncated_frame_is_refused():
    for length in range(len(FRAME)):
        with pytest.raises(FrameError):
            decode_frame(FRAME[:length])
    with pytest.raises(FrameError):
        decode_frame(FRAME + b"\0")


def test_a_frame_too_large_to_be_one_is_refused_unread():
    with pytest.raises(FrameError, match="frame of 8388609 bytes"):
        decode_frame(bytes(wire.MAX_FRAME_BYTES + 1))
    with pytest.raises(FrameError, match="reply of 1048577 bytes"):
        decode_reply(bytes(wire.MAX_REPLY_BYTES + 1))


def test_a_frame_of_the_largest_size_passes():
    frame = encode_frame(**{**LARGEST, "payload": bytes(wire.MAX_FRAME_BYTES - MAX_HEADER_BYTES)})
    assert len(decode_frame(frame)[1]) == wire.MAX_FRAME_BYTES - MAX_HEADER_BYTES


def packed(*fields):
    header = msgspec.msgpack.encode(fields)
    return bytes([len(header)]) + header


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, 2, "frame version 2; this server reads 1"),
        (0, 0, r"\$\[0\]"),
        (1, -1, r"\$\[1\]"),
        (1, 2**40, r"\$\[1\]"),
        (2, 2**63, r"\$\[2\]"),
        (3, 2**32, r"\$\[3\]"),
        (4, 2**16, r"\$\[4\]"),
        (5, len(wire.WIRE_ENCODINGS), r"\$\[5\]"),
        (6, 1, r"\$\[6\]"),
        (7, 1.5, r"\$\[7\]"),
        (7, float("nan"), r"\$\[7\]"),
        (8, zlib.crc32(b"x"), "frame of window 7: checksum"),
    ],
)
def test_a_header_out_of_range_is_refused_by_field(position, value, message):
    fields = [1, 7, 0, 1, 2, 0, False, 0.5, zlib.crc32(b"")]
    decode_frame(packed(*fields))
    fields[position] = value
    with pytest.raises(FrameError, match=message):
        decode_frame(packed(*fields))


def test_a_header_with_more_or_fewer_fields_is_refused():
    fields = [1, 7, 0, 1, 2, 0, False, 0.5, zlib.crc32(b"")]
    for wrong in (fields[:-1], [*fields, 0], {"version": 1}):
        with pytest.raises(FrameError, match="frame header"):
            decode_frame(packed(*wrong) if isinstance(wrong, list) else b"\x0a" + msgspec.msgpack.encode(wrong))


@given(replies)
def test_a_reply_survives_the_wire(reply):
    assert decode_reply(encode_reply(reply)) == reply


def test_a_reply_of_the_largest_embedding_passes():
    embedding = np.zeros(8192, "<f2").tobytes()
    reply = Reply(version=1, window=0, generation=1, status="ok", server_us=0, embedding=embedding)
    assert decode_reply(encode_reply(reply)).embedding == embedding


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", 2, "reply version 2; this device reads 1"),
        ("status", "OK", r"\$\[3\]"),
        ("status", "ok\n", r"\$\[3\]"),
        ("server_us", -1, r"\$\[4\]"),
        ("embedding", bytes((1 << 17) + 1), r"\$\[5\]"),
        ("mixture", bytes((1 << 19) + 1), r"\$\[6\]"),
    ],
)
def test_a_reply_out_of_range_is_refused_by_field(field, value, message):
    fields = {"version": 1, "window": 7, "generation": 1, "status": "ok", "server_us": 5}
    with pytest.raises(FrameError, match=message):
        decode_reply(encode_reply(Reply(**{**fields, field: value})))
