"""A hundred thousand damaged frames and ten thousand damaged replies: typed errors only, and memory stays flat."""

import struct
import tracemalloc
import zlib
from collections import Counter

import numpy as np
import pytest

from runtime_edge.audio.wire_streams import AudioStreamDecoder
from runtime_edge.errors import FrameError
from runtime_edge.formats.codec import ENCODINGS, CutCodec, channel_axis, int8_scale
from runtime_edge.formats.manifest import Cut, Int8Scale
from runtime_edge.formats.wire import (
    WIRE_ENCODINGS,
    FrameHeader,
    Reply,
    decode_frame,
    decode_replies,
    encode_frame,
    encode_reply,
)
from runtime_edge.policy.memory import GaussianMemory

pytestmark = pytest.mark.integration

FRAMES, REPLIES = 100_000, 10_000
SHAPE = (1, 8, 6, 5)


@pytest.fixture(scope="module")
def codecs():
    activation = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    axis = channel_axis(SHAPE)
    others = tuple(i for i in range(len(SHAPE)) if i != axis)
    scale, zero = int8_scale(activation.min(others), activation.max(others))
    int8 = Int8Scale(axis=axis, scale=scale.tobytes(), zero_point=zero.tobytes())
    cut = Cut(index=1, name="middle", node="relu", shape=SHAPE, bytes={}, agreement={}, int8=int8)
    return [CutCodec(cut, name) for name in ENCODINGS], activation


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, cut off, doubled or put in."""
    found = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(0, max(1, min(len(found), 64) if rng.random() < 0.7 else len(found))))
        kind = rng.integers(0, 5)
        if kind == 0 and found:
            found[place % len(found)] = int(rng.integers(256))
        elif kind == 1 and found:
            found[place % len(found)] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del found[place:]
        elif kind == 3:
            found[place:place] = rng.bytes(int(rng.integers(1, 9)))
        else:
            found[place:place] = struct.pack(">I", int(rng.integers(1 << 32)))
    return bytes(found)


def with_right_checksum(frame: bytes) -> bytes:
    """The frame with another checksum, so that its damage gets past it."""
    return frame[:-4] + zlib.crc32(frame[1:-4]).to_bytes(4, "little")


def test_damaged_frames_are_refused_or_decoded_and_nothing_else(codecs):
    codecs, activation = codecs
    rng = np.random.default_rng(1)
    frames = []
    for codec in codecs:
        payload, compressed = codec.encode(activation)
        frames.append(bytes(encode_frame(7, 10**18, 3, 1, codec.encoding, compressed, 0.5, bytes(payload))))
    outcomes: Counter[str] = Counter()

    def attack(count: int) -> None:
        for _ in range(count):
            frame = frames[rng.integers(len(frames))]
            if rng.random() < 0.4:
                cut = 1 + frame[0]
                frame = with_right_checksum(frame[:cut] + damaged(frame[cut:-4], rng) + bytes(4))
            else:
                frame = damaged(frame, rng)
            try:
                header, payload = decode_frame(frame)[0]
                assert isinstance(header, FrameHeader)
                if header.encoding < len(codecs):
                    values = codecs[header.encoding].decode(payload, header.compressed)
                    assert values.shape == SHAPE
                else:
                    values = AudioStreamDecoder(WIRE_ENCODINGS[header.encoding], 16_000, 480, 480).decode(payload, 7)
                assert np.isfinite(values).all()
                outcomes["decoded"] += 1
            except FrameError:
                outcomes["refused"] += 1

    attack(FRAMES // 10)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    attack(FRAMES // 10)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    attack(FRAMES - 2 * (FRAMES // 10))
    assert sum(outcomes.values()) == FRAMES
    assert outcomes["refused"] > FRAMES // 2
    assert outcomes["decoded"] > FRAMES // 100, "nothing got as far as the values"
    assert grown < 100_000


def test_damaged_replies_are_refused_or_read_and_nothing_else():
    rng = np.random.default_rng(2)
    memory = GaussianMemory(components=4, dim=16)
    whole = encode_reply(Reply(7, 3, "ok", 900, rng.bytes(32), mixture=memory.to_bytes()))
    outcomes: Counter[str] = Counter()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(REPLIES):
        try:
            (reply,) = decode_replies(damaged(whole, rng))
            memory.load_parameters(reply.mixture)
            outcomes["read"] += 1
        except FrameError:
            outcomes["refused"] += 1
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert outcomes["refused"] > REPLIES // 10
    assert outcomes["read"] > REPLIES // 100
    assert grown < 100_000
