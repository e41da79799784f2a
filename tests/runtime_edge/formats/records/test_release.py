import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.errors import FormatError, SignatureError, TableError
from runtime_edge.formats.minisign import SecretKey
from runtime_edge.formats.records import release as releases
from runtime_edge.formats.records.release import (
    MAX_RECORD_BYTES,
    Release,
    ReleasedBundle,
    SignedTable,
    canary_place,
    decode_release,
    open_table,
    sign_table,
)

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
        share=st.floats(0, 1),
        stable=st.none() | st.builds(ReleasedBundle, generation=st.integers(1, 9), manifest=st.just(DIGEST)),
        oldest=st.integers(1, 2**32 - 1),
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
        {"share": 1.01},
        {"share": -0.01},
        {"oldest": 0},
        {"stable": {"generation": 1}},
        {"stable": {"generation": 1, "manifest": DIGEST, "stable": None}},
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


def test_canaries_run_the_release_and_the_others_what_is_stable():
    stable = ReleasedBundle(generation=1, manifest=DIGEST)
    release = Release(generation=2, manifest=DIGEST, share=0.25, stable=stable)
    names = [f"pi-{number}" for number in range(100)]
    chosen = {name: release.for_device(name) for name in names}
    assert {name for name in names if chosen[name] is release} == {n for n in names if canary_place(n, 2) < 0.25}
    assert all(choice in (release, stable) for choice in chosen.values())
    assert 10 < sum(choice is release for choice in chosen.values()) < 40
    everybody = Release(generation=2, manifest=DIGEST, share=0.0)
    assert everybody.for_device("pi-1") is everybody, "there is nothing else to run"


def test_a_table_for_another_target_is_refused(table, signing_key):
    record = releases.encode(sign_table(table, signing_key))
    assert open_table(record, signing_key.public, "table rpi4", "rpi4") == table
    with pytest.raises(TableError, match=r"^table m2: made for target 'rpi4', not for 'm2'"):
        open_table(record, signing_key.public, "table m2", "m2")


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
