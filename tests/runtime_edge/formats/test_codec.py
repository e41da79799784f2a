import contextlib
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime_edge.errors import BundleError, FrameError
from runtime_edge.formats.codec import ENCODINGS, CutCodec, channel_axis, from_pcm, int8_scale, to_pcm
from runtime_edge.formats.manifest import Cut, Int8Scale
from runtime_edge.formats.wire import encode_frame

SHAPE = (1, 4, 3, 2)
floats = st.floats(-(2.0**60), 2.0**60, width=32)


def cut(shape=SHAPE, low=None, high=None):
    """A cut whose int8 range is [low, high] in each channel."""
    int8 = None
    if low is not None:
        scale, zero = int8_scale(np.asarray(low, np.float32), np.asarray(high, np.float32))
        int8 = Int8Scale(axis=channel_axis(shape), scale=scale.tobytes(), zero_point=zero.tobytes())
    return Cut(index=1, name="layer1", node="relu", shape=shape, bytes={}, agreement={}, int8=int8)


def there_and_back(codec, activation):
    return codec.decode(*codec.encode(activation))


@given(hnp.arrays(np.float32, SHAPE, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_float32_is_exact(activation):
    assert np.array_equal(there_and_back(CutCodec(cut(), "float32"), activation), activation)


@given(hnp.arrays(np.float32, SHAPE, elements=st.floats(-65504, 65504, width=32)))
def test_float16_is_off_by_half_a_unit_in_the_last_place(activation):
    found = there_and_back(CutCodec(cut(), "float16"), activation)
    assert (np.abs(found - activation) <= np.maximum(2.0**-11 * np.abs(activation), 2.0**-25)).all()


@given(hnp.arrays(np.float32, (1, 50), elements=st.floats(-1, 1, width=32)))
def test_pcm16_is_off_by_half_a_step(waveform):
    found = there_and_back(CutCodec(cut((1, 50)), "pcm16"), waveform)
    assert (np.abs(found - waveform) <= 0.5 / 32767 + 1e-7).all()


def test_pcm16_of_what_came_as_pcm16_is_exact():
    samples = (np.arange(-32767, 32768) / np.float32(32767)).astype(np.float32)[None]
    assert np.array_equal(there_and_back(CutCodec(cut(samples.shape), "pcm16"), samples), samples)


@given(
    hnp.arrays(np.float32, (4, 2), elements=floats),
    hnp.arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32)),
)
def test_int8_is_off_by_one_step_within_its_range(ends, share):
    low, high = np.minimum(ends.min(axis=1), 0), np.maximum(ends.max(axis=1), 0)
    along = (1, 4, 1, 1)
    activation = (low.reshape(along) * (1 - share) + high.reshape(along) * share).astype(np.float32)
    found = there_and_back(CutCodec(cut(SHAPE, low, high), "int8"), activation)
    step = np.maximum((high - low) / 255, 1e-8).reshape(along)
    # Half a step for the value, half for the zero point where the range ends.
    assert (np.abs(found - activation) <= step * 1.001).all()


@given(hnp.arrays(np.float32, (4, 2), elements=floats))
def test_int8_keeps_zero(ends):
    low, high = ends.min(axis=1), ends.max(axis=1)
    found = there_and_back(CutCodec(cut(SHAPE, low, high), "int8"), np.zeros(SHAPE, np.float32))
    assert not found.any()


@given(hnp.arrays(np.float32, SHAPE, elements=floats))
def test_int8_saturates_outside_its_range(activation):
    found = there_and_back(CutCodec(cut(SHAPE, [-1.0] * 4, [3.0] * 4), "int8"), activation)
    step = 4 / 255
    assert (np.abs(found - np.clip(activation, -1, 3)) <= 1.001 * step).all()


@given(
    hnp.arrays(np.float32, (1, 8), elements=st.floats(width=32)),
    st.lists(st.floats(-30, 30), min_size=8, max_size=8),
    st.lists(st.integers(-128, 127), min_size=8, max_size=8),
)
def test_int8_is_the_nearest_step_at_every_scale_and_value(activation, exponents, zero):
    scale = (10.0 ** np.array(exponents)).astype("<f4").clip(2e-30, 5e29)
    int8 = Int8Scale(axis=1, scale=scale.tobytes(), zero_point=np.array(zero, "i1").tobytes())
    one = Cut(index=1, name="layer1", node="relu", shape=(1, 8), bytes={}, agreement={}, int8=int8)
    found = there_and_back(CutCodec(one, "int8"), activation)[0] / scale + zero
    exact = np.where(np.isnan(activation[0]), zero, activation[0] / scale.astype(np.float64) + zero)
    assert (np.abs(found - np.clip(exact, -128, 127)) <= 0.5 + 1e-3).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_nan_becomes_zero_and_infinity_the_largest_value(encoding):
    activation = np.zeros((1, 4), np.float32)
    activation[0] = np.nan, np.inf, -np.inf, 0.5
    found = there_and_back(CutCodec(cut((1, 4), [-2.0] * 4, [6.0] * 4), encoding), activation)[0]
    largest = {"float32": np.finfo(np.float32).max, "float16": 65504.0, "int8": 6.0, "pcm16": 1.0}[encoding]
    smallest = {"int8": -2.0, "pcm16": -32768 / 32767}.get(encoding, -largest)
    assert found[0] == 0.0
    assert found[1:3] == pytest.approx([largest, smallest], rel=0.01)
    assert found[3] == pytest.approx(0.5, abs=8 / 255)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_huge_activation_is_no_error(encoding):
    activation = np.full((1, 4), np.finfo(np.float32).max, np.float32)
    found = there_and_back(CutCodec(cut((1, 4), [0.0] * 4, [1e-3] * 4), encoding), activation)
    assert np.isfinite(found).all()


def test_encoding_leaves_the_activation_alone():
    activation = np.array([[np.nan, 1e9, -3.0, 0.1]], np.float32)
    for encoding in ENCODINGS:
        before = activation.copy()
        CutCodec(cut((1, 4), [-1.0] * 4, [1.0] * 4), encoding).encode(activation)
        assert np.array_equal(activation, before, equal_nan=True)


def test_a_decoded_array_is_the_callers_own():
    codec = CutCodec(cut((1, 4)), "float32")
    first = there_and_back(codec, np.ones((1, 4), np.float32))
    there_and_back(codec, np.zeros((1, 4), np.float32))
    first += 1
    assert first.tolist() == [[2.0] * 4]


PIECE = 1 << 18
"""zstd packs into pieces of up to so many bytes, which are then joined."""


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_packed_payload_and_its_frame_are_all_that_encoding_allocates(encoding):
    shape = (1, 100_000) if encoding == "pcm16" else (1, 64, 32, 25)
    limits = [] if encoding == "pcm16" else [[-1.0] * 64, [4.0] * 64]
    codec = CutCodec(cut(shape, *limits), encoding)
    noise = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)

    def peak(activation):
        """Bytes allocated at most between the activation and its frame."""
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        payload, compressed = codec.encode(activation)
        frame = encode_frame(1, 2, 3, 4, encoding, compressed, 0.5, payload)
        return tracemalloc.get_traced_memory()[1] - before, len(frame), compressed

    tracemalloc.start()
    try:
        peak(noise)
        compressible, incompressible = peak(np.maximum(noise, 0)), peak(noise * 1e3)
    finally:
        tracemalloc.stop()
    for allocated, frame_bytes, _ in (compressible, incompressible):
        assert allocated < 2 * frame_bytes + PIECE
    assert compressible[2]


def test_a_payload_is_valid_until_the_next():
    codec = CutCodec(cut((1, 4)), "float32")
    payload, _ = codec.encode(np.ones((1, 4), np.float32))
    kept = bytes(payload)
    codec.encode(np.zeros((1, 4), np.float32))
    assert payload == bytes(16) != kept


def test_zstd_is_used_only_where_it_helps():
    codec = CutCodec(cut((1, 4000)), "float32")
    payload, compressed = codec.encode(np.zeros((1, 4000), np.float32))
    assert compressed
    assert len(payload) < 100
    noise = np.random.default_rng(0).integers(0, 2**32, (1, 4000), np.uint32).view(np.float32)
    noise[~np.isfinite(noise)] = 1.0
    payload, compressed = codec.encode(noise)
    assert not compressed
    assert len(payload) == codec.raw_bytes == 16000


def test_the_same_activation_gives_the_same_bytes():
    activation = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    for encoding in ENCODINGS:
        one, other = (CutCodec(cut(SHAPE, [-3.0] * 4, [3.0] * 4), encoding) for _ in range(2))
        assert one.encode(activation) == other.encode(activation) == one.encode(activation)


@pytest.mark.parametrize("length", [0, 1, 95, 97, 1000])
def test_a_payload_of_another_length_is_refused(length):
    codec = CutCodec(cut(), "float32")
    with pytest.raises(FrameError, match=f"payload has {length} bytes, this cut in float32 has 96"):
        codec.decode(bytes(length), False)
    with pytest.raises(FrameError, match=f"would unpack to {length} bytes, expected 96"):
        codec.decode(zstandard.compress(bytes(length)), True)


def test_a_zstd_bomb_is_refused_before_it_unpacks():
    codec = CutCodec(cut(), "float32")
    bomb = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(1 << 28))
    with pytest.raises(FrameError, match="would unpack to 268435456 bytes"):
        codec.decode(bomb, True)
    nameless = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 28))
    with pytest.raises(FrameError):
        codec.decode(nameless, True)


def test_a_zstd_frame_that_lies_about_its_size_is_refused():
    codec = CutCodec(cut(), "float32")
    frame = bytearray(zstandard.compress(bytes(1 << 20)))
    honest = bytearray(zstandard.compress(bytes(range(96))))
    assert zstandard.frame_content_size(bytes(honest)) == 96
    # The header of 96 bytes before the blocks of a megabyte.
    lying = honest[: zstandard.frame_header_size(bytes(honest))] + frame[zstandard.frame_header_size(bytes(frame)) :]
    with pytest.raises(FrameError):
        codec.decode(bytes(lying), True)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.booleans(), st.sampled_from(ENCODINGS))
def test_garbage_is_refused_or_decodes_to_finite_numbers(payload, compressed, encoding):
    codec = CutCodec(cut(SHAPE, [-1.0] * 4, [1.0] * 4), encoding)
    with contextlib.suppress(FrameError):
        found = codec.decode(payload, compressed)
        assert found.shape == SHAPE
        assert np.isfinite(found).all()


@pytest.mark.parametrize("encoding", ["float32", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_payload_with_nan_or_infinity_is_refused(encoding, value):
    payload = np.full(SHAPE, value, "<f4" if encoding == "float32" else "<f2").tobytes()
    with pytest.raises(FrameError, match="NaN or infinite"):
        CutCodec(cut(), encoding).decode(payload, False)


def test_an_encoding_that_a_cut_does_not_have_is_refused():
    with pytest.raises(BundleError, match="cut layer1: the bundle holds no int8 scales"):
        CutCodec(cut(), "int8")
    with pytest.raises(BundleError, match="encoding 'mp3': expected one of float32, "):
        CutCodec(cut(), "mp3")


@pytest.mark.parametrize(("shape", "axis"), [((1, 8, 5, 5), 1), ((1, 8, 4, 5, 5), 1), ((1, 10, 64), 2), ((1, 64), 1)])
def test_channels_of_images_are_axis_1_and_else_the_last(shape, axis):
    assert channel_axis(shape) == axis


def test_every_sample_of_16_bits_comes_back():
    every = np.arange(-32768, 32768).astype(np.int16)
    assert (to_pcm(from_pcm(every)) == every).all()


def test_what_is_beyond_full_scale_is_clipped_and_no_number_is_silence():
    samples = np.array([1.2, -3.0, np.inf, -np.inf, np.nan, 1e30], np.float32)
    assert to_pcm(samples).tolist() == [32767, -32768, 32767, -32768, 0, 32767]
