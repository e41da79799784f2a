"""A record comes out of its envelope as it went in, for the key it was made for, and anything else is refused."""

import json

import msgspec
import pytest
from garbage import read_or_refused
from hypothesis import example, given
from hypothesis import strategies as st

from runtime_edge.base.zstd import ZstdCompressor, compress_frame
from runtime_edge.errors import FormatError, HeadError, SignatureError, TableError
from runtime_edge.formats import minisign
from runtime_edge.formats.records.envelope import ABOUT, MAX_NUMBER, open_record, seal

BODY = b'{"target": "rpi4",\n "q": [1, 2]}'
OTHER = minisign.SecretKey(b"\1" * 8, bytes(32))
COMMENT = "table:_all.rpi4 number:7"


def packed(content):
    return compress_frame(ZstdCompressor(), content)


def without_size(content):
    """A frame that does not say how long its content is."""
    compressor = ZstdCompressor()
    return compressor.compress(content) + compressor.flush()


def sealed(secret, **changes):
    """A signed record with some of what is signed changed, before it is signed."""
    fields = json.loads(json.loads(seal("table", "_all.rpi4", 7, BODY, secret))["record"]) | changes
    text = json.dumps(fields)
    return json.dumps({"record": text, "signature": minisign.sign(text.encode(), secret, COMMENT)}).encode()


@given(
    st.sampled_from(sorted(ABOUT)), st.text("abc_.-0", min_size=1, max_size=60), st.integers(1, MAX_NUMBER),
    st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)),
)  # fmt: skip
def test_a_record_survives_its_envelope(kind, key, number, body):
    text = json.dumps(body).encode()
    data = seal(kind, key, number, text, OTHER)
    record = open_record(data, kind, key, OTHER.public, "x")
    assert (record.kind, record.key, record.number, record.body) == (kind, key, number, text)
    assert record == open_record(data, kind, None, None, "x")
    assert record.name == f"{kind} {key}"


def test_what_is_signed_is_one_json_document_that_minisign_verifies(signing_key):
    data = seal("table", "_all.rpi4", 7, BODY, signing_key)
    assert data == seal("table", "_all.rpi4", 7, BODY, signing_key)
    outer = json.loads(data)
    assert json.loads(outer["record"]) == {
        "format": "streamsplit.record/2", "kind": "table", "key": "_all.rpi4", "number": 7, "body": json.loads(BODY),
    }  # fmt: skip
    assert minisign.verify(outer["record"].encode(), outer["signature"], signing_key.public) == COMMENT


def test_a_record_without_the_trusted_signature_is_refused(signing_key):
    def refused(data):
        with pytest.raises(SignatureError) as caught:
            open_record(data, "table", "_all.rpi4", signing_key.public, "table x")
        assert str(caught.value).startswith("table x: ")
        return str(caught.value)

    assert "the table is not signed" in refused(seal("table", "_all.rpi4", 7, BODY, None))
    assert "signed by key 0101010101010101" in refused(seal("table", "_all.rpi4", 7, BODY, OTHER))
    honest = seal("table", "_all.rpi4", 7, BODY, signing_key)
    assert "does not match" in refused(honest.replace(b":7,", b":8,", 1))
    text = json.loads(honest)["record"]
    lying = json.dumps({"record": text, "signature": minisign.sign(text.encode(), signing_key, "table:x number:8")})
    assert "the trusted comment says 'table:x number:8'" in refused(lying.encode())


def test_a_record_for_another_key_or_of_another_kind_is_refused(signing_key):
    data = seal("table", "pi-1.rpi4", 7, BODY, signing_key)
    with pytest.raises(TableError, match=r"^x: key: made for 'pi-1.rpi4', not for 'pi-2.rpi4'"):
        open_record(data, "table", "pi-2.rpi4", signing_key.public, "x")
    with pytest.raises(HeadError, match=r"^x: kind: a table, expected a head"):
        open_record(data, "head", "pi-1.rpi4", signing_key.public, "x")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"format": "streamsplit.record/3"}, "format"), ({"kind": "other"}, "kind"), ({"key": ""}, "key"),
        ({"key": 5}, "key"), ({"number": 0}, "number"), ({"number": -1}, "number"), ({"number": 1.5}, "number"),
        ({"number": MAX_NUMBER + 1}, "number"), ({"surprise": 1}, "surprise"),
    ],
)  # fmt: skip
def test_a_signed_text_that_is_no_envelope_is_refused_by_field(signing_key, changes, field):
    with pytest.raises(TableError, match=field) as caught:
        open_record(sealed(signing_key, **changes), "table", "_all.rpi4", signing_key.public, "table x")
    assert str(caught.value).startswith("table x: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["table", "head", "release"])
def test_sizes_are_bounded_before_they_are_read(kind):
    limit = ABOUT[kind].limit_bytes
    with pytest.raises(ABOUT[kind].error, match=f"x: {limit + 1} bytes, more than {limit}"):
        open_record(b" " * (limit + 1), kind, None, None, "x")


def test_an_adaptation_is_packed_and_unpacks_to_at_most_its_limit(signing_key):
    body, limit = b'{"layers":"' + b"A" * 5000 + b'"}', ABOUT["adaptation"].limit_bytes
    data = seal("adaptation", "pi-1.rpi4", 7, body, signing_key)
    assert len(data) < 500
    assert open_record(data, "adaptation", "pi-1.rpi4", signing_key.public, "x").body == body
    with pytest.raises(FormatError, match=f"^x: unpacks to {limit + 1} bytes, more than {limit}$"):
        open_record(packed(b" " * (limit + 1)), "adaptation", None, None, "x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x: not a zstd frame"),
        (b'{"record": "{}"}', "x: not a zstd frame"),
        (packed(b"{}" * 50)[:-3], "x: does not unpack to the bytes it claims"),
        (packed(b"{}" * 50) + b"more", "x: does not unpack to the bytes it claims"),
        (without_size(b"{}"), "x: does not unpack to the bytes it claims"),
        (packed(b"{}"), "x: .*record"),
        (packed(b""), "x: not JSON"),
    ],
)
def test_an_adaptation_that_is_no_whole_frame_is_refused(data, message):
    with pytest.raises(FormatError, match=message) as caught:
        open_record(data, "adaptation", None, None, "x")
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200), st.sampled_from(sorted(ABOUT)))
@example(b'{"":[]}', "release")
def test_garbage_gives_the_kinds_error_and_nothing_else(data, kind):
    def read(data, source):
        return open_record(data, kind, None, None, source)

    found = read_or_refused(read, data, ABOUT[kind].error)
    # 0.1.0 published releases bare: any object may be one, until it is read as a release.
    assert found is None or (found.kind, found.number, found.body) == ("release", 0, data)


@pytest.mark.parametrize(
    "data", [b'{"record": 5}', b'{"record": "{}", "more": 1}', b'{"record": "\\ud800"}', b"[]", b""]
)
def test_what_is_no_record_is_refused(data):
    with pytest.raises(FormatError, match=r"^x: "):
        open_record(data, "release", None, None, "x")


def test_records_of_earlier_versions_have_number_0(signing_key):
    for kind, error in (("table", TableError), ("head", HeadError)):
        data = msgspec.json.encode({kind: "{}", "signature": minisign.sign(b"{}", signing_key, "any")})
        record = open_record(data, kind, "_all.rpi4", signing_key.public, "x")
        assert (record.number, record.body, record.key) == (0, b"{}", "_all.rpi4")
        with pytest.raises(SignatureError, match="not signed"):
            open_record(msgspec.json.encode({kind: "{}"}), kind, "_all.rpi4", signing_key.public, "x")
        with pytest.raises(error, match=r"^x: not "):
            open_record(b'{"%b": "\\ud800"}' % kind.encode(), kind, None, None, "x")
    release = b'{"generation": 1}'
    assert open_record(release, "release", "rpi4", signing_key.public, "x").number == 0, "never signed until then"
    assert open_record(release, "release", "rpi4", signing_key.public, "x").body == release
