"""What a device says of itself, whoever wrote it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.errors import FormatError
from runtime_edge.formats.records.report import MAX_REPORT_BYTES, decode_report

HONEST = {
    "device": "pi-1", "bundle": "sha256:00", "on_trial": False, "cuts": {"one": 3}, "temperature_c": None,
    "state": {"cpu": 0.5}, "update_failures": [{"event": "failed", "reason": "why", "generation": 2}],
}  # fmt: skip


@pytest.mark.parametrize("version", [{}, {"version": 1}, {"version": 2}])
def test_a_devices_report_is_read_as_it_was_written(version):
    report = HONEST | version
    assert decode_report(json.dumps(report).encode(), "test") == report


@pytest.mark.parametrize("version", [0, 3, True, "2", 2.0, None, [2], "x\n" * 100])
def test_a_report_of_another_version_is_refused(version):
    with pytest.raises(FormatError, match=r"^test: version '.*'; this program reads 1 to 2: update it$"):
        decode_report(json.dumps(HONEST | {"version": version}).encode(), "test")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{", b"\xff\xfe", b'{"a": "\xff"}', b'{"a": "\\ud800"}', b'{"a":' * 5 + b"1" + b"}" * 5,
        b'{"a":' * 900 + b"1" + b"}" * 900, b'{"a":' * 10_000, b"[" * 60_000, b'{"a": 1e999}',
        b'{"a": ' + b"9" * 4000 + b"}", b'{"a": 18446744073709551616}', b'{"a": "' + b"x" * MAX_REPORT_BYTES + b'"}',
    ],
)  # fmt: skip
def test_what_is_no_report_is_one_error_in_one_line(data):
    with pytest.raises(FormatError, match=r"^test: ") as raised:
        decode_report(data, "test")
    assert str(raised.value).isprintable()


@given(
    st.binary(max_size=200) | st.recursive(st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_any_bytes_are_a_report_or_that_error(data):
    try:
        report = decode_report(data, "test")
    except FormatError:
        return
    assert json.loads(json.dumps(report)) == report
