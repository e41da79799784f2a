"""Frames and replies: round trips, damage, bounds, several windows, version 1."""

from __future__ import annotations

import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime_edge.errors import FrameError
from runtime_edge.formats import wire
from runtime_edge.formats.codec import ENCODINGS
from runtime_edge.formats.wire import (
    CHECKSUM_BYTES,
    MAX_HEADER_BYTES,
    FrameHeader,
    Reply,
    decode_frame,
    decode_replies,
    encode_frame,
    encode_frames,
    encode_replies,
    encode_reply,
)

STEP = 1 / 65535
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
        "model": st.integers(0, 2**64 - 1),
        "width": st.integers(0, 2**16 - 1),
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
    "model": 2**64 - 1,
    "width": 2**16 - 1,
}
replies = st.builds(
    Reply,
    window=st.integers(0, 2**40 - 1),
    generation=st.integers(0, 2**32 - 1),
    status=st.sampled_from(["ok", "retired", "refused", "foreign"]),
    server_us=st.integers(0, 2**53),
    embedding=st.binary(max_size=300),
    encoding=st.sampled_from(["float16", "int8"]),
    mixture=st.binary(max_size=300),
)
FRAME = encode_frame(**{**LARGEST, "payload": bytes(range(64))})


@given(frames)
@example(LARGEST)
def test_a_frame_survives_the_wire(fields):
    frame = encode_frame(**fields)
    ((header, payload),) = decode_frame(frame)
    assert payload == fields["payload"]
    assert header.encoding == ENCODINGS.index(fields["encoding"])
    assert abs(header.uncertainty - fields["uncertainty"]) <= STEP / 2 * 1.001
    for name in fields.keys() - {"payload", "encoding", "uncertainty"}:
        assert getattr(header, name) == fields[name]
    assert len(frame) - len(payload) - CHECKSUM_BYTES <= MAX_HEADER_BYTES


@given(frames)
def test_the_same_window_gives_the_same_frame(fields):
    assert encode_frame(**fields) == encode_frame(**fields)


@st.composite
def alike(draw):
    """Headers of one frame with their payloads."""
    common = dict(zip(("generation", "cut", "encoding", "width", "model"), draw(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 99), st.integers(0, 3), st.integers(0, 64),
                  st.integers(0, 2**64 - 1))), strict=True))  # fmt: skip
    compressed, window, capture = draw(st.booleans()), draw(st.integers(0, 2**30)), draw(st.integers(0, 2**62))
    found = []
    for _ in range(draw(st.integers(1, wire.MAX_WINDOWS))):
        uncertainty = draw(st.integers(0, 65535)) * STEP
        header = FrameHeader(window, capture, compressed=compressed, uncertainty=uncertainty, **common)
        found.append((header, draw(st.binary(max_size=20))))
        window += draw(st.integers(1, 2**32 - 1))
        capture += draw(st.integers(0, 10**9))
    return found


@settings(max_examples=50)
@given(alike())
def test_several_windows_survive_in_one_frame(windows):
    found = decode_frame(encode_frames(windows))
    assert [payload for _, payload in found] == [payload for _, payload in windows]
    for (header, _), (before, _) in zip(found, windows, strict=True):
        assert header._replace(uncertainty=0.0) == before._replace(uncertainty=0.0)
        assert header.uncertainty == pytest.approx(before.uncertainty, abs=STEP / 100)


def test_four_windows_in_one_frame_cost_less_than_half_of_what_surrounds_four_frames():
    def header(index):
        return FrameHeader(
            10_000 + index, 1_700_000_000_000_000_000 + index * 500_000_000, 3, 4, 2, True, 0.5, 8, 2**63
        )

    together = len(encode_frames([(header(index), b"") for index in range(4)]))
    assert together < 0.5 * sum(len(encode_frames([(header(index), b"")])) for index in range(4))


def test_windows_that_differ_do_not_share_a_frame():
    first = FrameHeader(5, 100, 1, 2, 3, False, 0.5, 4, 6)
    for other in (
        first._replace(window=6, generation=2),
        first._replace(window=6, cut=1),
        first._replace(window=6, encoding=0),
        first._replace(window=6, compressed=True),
        first._replace(window=6, width=8),
        first._replace(window=6, model=7),
    ):
        with pytest.raises(FrameError, match="of one generation"):
            encode_frames([(first, b""), (other, b"")])
    for other in (first, first._replace(window=4), first._replace(window=6, capture_ns=99)):
        with pytest.raises(FrameError, match="in their order"):
            encode_frames([(first, b""), (other, b"")])
    for count in (0, wire.MAX_WINDOWS + 1):
        with pytest.raises(FrameError, match=f"{count} windows; a frame carries 1 to 64"):
            encode_frames([(first._replace(window=5 + index), b"") for index in range(count)])


@settings(max_examples=500)
@given(st.binary(max_size=150))
def test_garbage_is_refused(data):
    with pytest.raises(FrameError):
        decode_frame(data)
    with pytest.raises(FrameError):
        decode_replies(data)


@pytest.mark.parametrize("several", [False, True])
def test_every_changed_bit_is_noticed(several):
    window = FrameHeader(7, 5, 1, 2, 0, False, 0.5)
    later = [(window._replace(window=7 + index, capture_ns=5 + index), bytes(10)) for index in range(20)]
    whole = encode_frames(later) if several else FRAME
    for position in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[position] ^= 1 << bit
            with pytest.raises(FrameError):
                decode_frame(bytes(changed))


def test_only_a_frame_of_the_second_version_says_that_it_has_a_checksum_at_its_end():
    frame = wire.encode_frame(5, 6, 1, 2, "int8", False, 0.5, b"payload")
    several = wire.encode_frames([(wire.decode_frame(frame)[0][0]._replace(window=w), b"payload") for w in range(64)])
    assert several[0] >= 0x80, "a length of two bytes"
    assert all(wire.has_checksum(whole) and wire.is_whole(whole) for whole in (frame, several))
    assert not wire.is_whole(frame[:-1])
    assert not any(map(wire.has_checksum, (b"", b"payload", bytes(300))))


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
        decode_replies(bytes(wire.MAX_REPLY_BYTES + 1))


def test_a_frame_of_the_largest_size_passes():
    size = wire.MAX_FRAME_BYTES - MAX_HEADER_BYTES - CHECKSUM_BYTES
    frame = encode_frame(**{**LARGEST, "payload": bytes(size)})
    assert len(decode_frame(frame)[0][1]) == size


def packed(*fields):
    header = msgspec.msgpack.encode(fields)
    return bytes([len(header)]) + header


def sealed(*fields):
    """A frame of version 2 with these fields, no payload and the right checksum."""
    whole = packed(*fields)
    return whole + zlib.crc32(whole[1:]).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, 3, "frame version 3; this server reads 1, 2"),
        (0, 0, "frame version 0"),
        (1, -1, r"\$\[1\]"),
        (1, 2**64 - 1, ""),
        (2, 2**32, r"\$\[2\]"),
        (3, 2**16, r"\$\[3\]"),
        (4, 2**16, r"\$\[4\]"),
        (5, 2 * len(wire.WIRE_ENCODINGS), r"\$\[5\]"),
        (6, 2**40, r"\$\[6\]"),
        (7, 2**63, r"\$\[7\]"),
        (8, 2**16, r"\$\[8\]"),
        (8, 0.5, r"\$\[8\]"),
        (9, [[0, 0, 0, 0]], r"\$\[9\]"),
        (9, [[1, 0, 0, 1]], "shorter than its windows"),
        (9, [[1, 0, 0, 0]] * 64, r"\$\[9\]"),
    ],
)
def test_a_header_out_of_range_is_refused_by_field(position, value, message):
    fields = [2, 1, 1, 2, 0, 0, 7, 0, 9, []]
    decode_frame(sealed(*fields))
    fields[position] = value
    frame = sealed(*fields) if len(msgspec.msgpack.encode(fields)) < 128 else long(fields)
    if not message:
        decode_frame(frame)
        return
    with pytest.raises(FrameError, match=message):
        decode_frame(frame)


def long(fields):
    header = msgspec.msgpack.encode(fields)
    return bytes([0x80 | len(header) >> 8, len(header) & 0xFF]) + header + zlib.crc32(header).to_bytes(4, "little")


def test_a_header_with_more_or_fewer_fields_is_refused():
    fields = [2, 1, 1, 2, 0, 0, 7, 0, 9, []]
    for wrong in (fields[:-2], [*fields, 0]):
        with pytest.raises(FrameError, match="frame header"):
            decode_frame(sealed(*wrong))


def version_1(crc32=None, payload=b"abc"):
    return packed(1, 7, 5, 1, 2, 1, True, 0.25, zlib.crc32(payload) if crc32 is None else crc32) + payload


def test_version_1_is_still_read_and_its_checksum_still_compared():
    ((header, payload),) = decode_frame(version_1())
    assert payload == b"abc"
    assert header == FrameHeader(7, 5, 1, 2, 1, True, 0.25, width=0, model=wire.NO_MODEL, version=1)
    with pytest.raises(FrameError, match="frame of window 7: its checksum"):
        decode_frame(version_1(crc32=1))


@given(replies)
def test_a_reply_survives_the_wire(reply):
    assert decode_replies(encode_reply(reply)) == [reply]


def test_one_message_answers_the_windows_of_one_frame():
    answers = [Reply(7 + index, 3, "ok", 900, bytes([index]), mixture=b"m" * (not index)) for index in range(5)]
    assert decode_replies(encode_replies(answers)) == answers


@given(replies)
def test_a_frame_of_version_1_gets_a_reply_that_its_device_reads(reply):
    data = encode_reply(reply, version=1)
    told = msgspec.msgpack.decode(data)
    assert told[0] == 1
    assert told[3] in ("ok", "retired", "refused")
    if reply.encoding == "float16":
        status = "refused" if reply.status == "foreign" else reply.status
        assert decode_replies(data) == [msgspec.structs.replace(reply, status=status)]


def test_an_embedding_is_read_in_either_encoding_and_refused_at_another_length():
    vector = np.array([0.5, -0.25, 1.0], np.float32)
    assert np.array_equal(Reply(0, 1, "ok", embedding=vector.astype("<f2").tobytes()).vector(3), vector)
    data = np.float32(0.25).tobytes() + np.array([2, -1, 4], "i1").tobytes()
    coded = Reply(0, 1, "ok", embedding=data, encoding="int8")
    assert np.array_equal(coded.vector(3), vector)
    assert coded.vector(4) is None
    assert Reply(0, 1, "retired").vector(3) is None


def test_a_reply_of_the_largest_embedding_passes():
    embedding = np.zeros(8192, "<f2").tobytes()
    assert decode_replies(encode_reply(Reply(0, 1, "ok", 0, embedding)))[0].embedding == embedding


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, 3, "reply version 3; this device reads 1, 2"),
        (1, -1, r"\$\[1\]"),
        (2, "OK", r"\$\[2\]"),
        (2, "ok\n", r"\$\[2\]"),
        (3, -1, r"\$\[3\]"),
        (4, 2, r"\$\[4\]"),
        (5, [], r"\$\[5\]"),
        (5, [[7, bytes((1 << 17) + 1)]], r"\$\[5\]"),
        (6, bytes((1 << 19) + 1), r"\$\[6\]"),
    ],
)
def test_a_reply_out_of_range_is_refused_by_field(position, value, message):
    fields = [2, 1, "ok", 5, 0, [[7, b""]], b""]
    decode_replies(msgspec.msgpack.encode(fields))
    fields[position] = value
    with pytest.raises(FrameError, match=message):
        decode_replies(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("encoding", ["pcm16-stream", "flac", "opus"])
def test_a_stream_that_says_it_is_compressed_is_refused(encoding):
    with pytest.raises(FrameError, match="window 7: a stream of audio that says it is a zstd frame"):
        decode_frame(encode_frame(7, 10**18, 3, 0, encoding, True, 0.5, b"\0abc"))
