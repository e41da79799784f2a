import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.errors import FormatError
from runtime_edge.formats.records.clip import MAX_CLIP_BYTES, PIECE_BYTES, ClipPiece, ClipRequest

TOKENS = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=32)


@given(TOKENS, st.floats(0, 1e11), st.integers(0, MAX_CLIP_BYTES))
def test_a_request_is_read_as_it_was_written(asked, since, offset):
    request = ClipRequest(asked=asked, label="rain", since=since, offset=offset)
    assert ClipRequest.decode(request.encode()) == request


@given(TOKENS, st.integers(0, 3 * PIECE_BYTES), st.integers(0, 3 * PIECE_BYTES))
def test_a_piece_has_what_its_place_says(asked, offset, size):
    clip = bytes(size)
    piece = ClipPiece(asked=asked, offset=offset, size=size, data=clip[offset : offset + PIECE_BYTES])
    assert ClipPiece.decode(piece.encode()) == piece


@pytest.mark.parametrize("change", [{"data": b"12"}, {"size": 0}, {"size": 9000}, {"offset": 3}])
def test_a_piece_of_another_length_is_refused(change):
    piece = {"asked": "a", "offset": 0, "size": 3, "data": b"123"}
    with pytest.raises(FormatError, match="data: "):
        ClipPiece.decode(msgspec.msgpack.encode(piece | change))


OBJECTS = st.dictionaries(st.text(), st.integers(-9, 9) | st.text(), max_size=5)


@given(st.binary(max_size=200) | OBJECTS.map(msgspec.msgpack.encode))
def test_anything_else_is_one_error_of_one_line(data):
    for kind in (ClipRequest, ClipPiece):
        with pytest.raises(FormatError) as caught:
            kind.decode(data)
        assert "\n" not in str(caught.value)
