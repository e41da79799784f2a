import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge import releases
from runtime_edge.errors import FormatError, SignatureError, TableError
from runtime_edge.minisign import SecretKey
from runtime_edge.releases import MAX_RECORD_BYTES, Release, SignedTable, decode_release, open_table, sign_table

DIGEST = "sha256:" + "0f" * 32
OTHER = SecretKey(b"\1" * 8, bytes(32))


@pytest.fixture(scope="module")
def table(small_bundle):
    return small_bundle.table("rpi4")


@given(
    st.builds(
        Release,
        generation=st.integers(1, 2**32 - 1),
        manifest=st.just(DIGEST),
        signature=st.text(max_size=50),
        rollback=st.booleans(),
    )
)
def test_a_release_survives_its_bytes(release):
    assert decode_release(releases.encode(release), "release") == release


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 0},
        {"generation": 2**32},
        {"generation": "1"},
        {"manifest": "sha256:00"},
        {"manifest": DIGEST + "\n"},
        {"signature": None},
        {"rollback": 1},
        {"surprise": 1},
    ],
)
def test_a_release_that_is_none_is_refused_by_source(change):
    fields = {"generation": 1, "manifest": DIGEST, **change}
    with pytest.raises(FormatError, match=r"^release for rpi4: "):
        decode_release(json.dumps(fields).encode(), "release for rpi4")


@given(st.binary(max_size=100))
def test_garbage_is_no_release_and_no_table(data):
    with pytest.raises(FormatError):
        decode_release(data, "release")
    with pytest.raises(FormatError):
        open_table(data, None, "table")


def test_a_record_too_large_is_refused_unread():
    for read in (lambda data: decode_release(data, "x"), lambda data: open_table(data, None, "x")):
        with pytest.raises(FormatError, match=f"x: {MAX_RECORD_BYTES + 1} bytes, more than {MAX_RECORD_BYTES}"):
            read(b" " * (MAX_RECORD_BYTES + 1))


def test_a_signed_table_survives_its_bytes(table, signing_key):
    record = releases.encode(sign_table(table, signing_key))
    assert open_table(record, signing_key.public, "table rpi4") == table
    assert open_table(record, None, "table rpi4") == table
    assert record == releases.encode(sign_table(table, signing_key))


def test_a_table_without_the_trusted_signature_is_refused(table, signing_key):
    with pytest.raises(SignatureError, match=r"^table rpi4: the table is not signed"):
        open_table(releases.encode(sign_table(table, None)), signing_key.public, "table rpi4")
    with pytest.raises(SignatureError, match=r"^table rpi4: signed by key 0101010101010101"):
        open_table(releases.encode(sign_table(table, OTHER)), signing_key.public, "table rpi4")


def test_a_changed_table_is_refused(table, signing_key):
    record = sign_table(table, signing_key)
    changed = SignedTable(table=record.table.replace('"rpi4"', '"rpi5"'), signature=record.signature)
    with pytest.raises(SignatureError, match="does not match"):
        open_table(releases.encode(changed), signing_key.public, "table rpi4")


@pytest.mark.parametrize("text", ["", "{}", "[]", "\0", "null", "é"])
def test_a_record_that_holds_no_table_is_refused(text):
    with pytest.raises(TableError, match=r"^table rpi4: "):
        open_table(releases.encode(SignedTable(table=text)), None, "table rpi4")


def test_lone_surrogates_are_refused():
    with pytest.raises(FormatError, match=r"^table rpi4: "):
        open_table(b'{"table": "\\ud800"}', None, "table rpi4")
