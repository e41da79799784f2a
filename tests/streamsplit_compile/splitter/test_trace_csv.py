"""Recorded traces: what is right is resampled, what is wrong is refused by file, line and column."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_edge.errors import FormatError, SscError, UsageError
from streamsplit_compile.splitter.trace_csv import known_families, read_csv, recorded_traces

HEADER = "time_s,bandwidth_mbps,rtt_ms,cpu"


def write(path: Path, seconds: int, extra: str = "", values: str = "") -> Path:
    lines = [f"{100 + t},{1 + t % 7},{50 + t % 5},{0.1 * (t % 10):.1f}{values}" for t in range(seconds)]
    path.write_text("\n".join([HEADER + extra, *lines]) + "\n")
    return path


def test_values_hold_until_the_next_line(tmp_path: Path) -> None:
    train, held_out = recorded_traces(write(tmp_path / "a.csv", 101), seed=0)
    # 201 windows of half a second: five traces of 40, the last one held out.
    assert (train.shape, held_out.shape) == ((4, 40), (1, 40))
    second = np.arange(160) // 2
    assert train.bandwidth_mbps.ravel().tolist() == (1 + second % 7).tolist()
    assert train.rtt_ms.ravel().tolist() == (50 + second % 5).tolist()
    assert held_out.cpu[0] == pytest.approx(0.1 * ((80 + np.arange(40) // 2) % 10))
    assert 0 < train.uncertainty.min() < train.uncertainty.max() < 1
    assert train.temperature_c is None


def test_a_directory_is_read_whole_and_optional_columns_are_kept(tmp_path: Path) -> None:
    for name in ("b.csv", "a.CSV"):
        write(tmp_path / name, 60, ",uncertainty,temperature_c,battery", ",0.25,48.5,0.9")
    for hidden in ("._a.csv", ".a.csv", "~a.csv", "a.part.csv"):
        (tmp_path / hidden).write_bytes(b"\0\5\x16\7")
    train, held_out = recorded_traces(tmp_path, seed=0)
    assert train.shape[0] == 4 * held_out.shape[0] == 8
    assert set(train.uncertainty.ravel()) == {0.25}
    assert train.temperature_c is not None
    assert train.battery is not None
    assert (train.temperature_c.max(), train.battery.min()) == (48.5, 0.9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"t.csv:1: column time_s is missing"),
        ("time_s,rtt_ms,cpu\n", r"t.csv:1: column bandwidth_mbps is missing"),
        (f"{HEADER},mood\n", r"t.csv:1: column 'mood' is not known; there are time_s, bandwidth"),
        (f"{HEADER},cpu\n", r"t.csv:1: a column appears twice"),
        (f"{HEADER}\n0,1,50,0.1\n1,1,50\n", r"t.csv:3: 3 values for 4 columns"),
        (f"{HEADER}\n0,1,50,0.1\n1,fast,50,0.1\n", r"t.csv:3: bandwidth_mbps: 'fast' is not a number from 0 to"),
        (f"{HEADER}\n0,1,50,0.1\n1,1,nan,0.1\n", r"t.csv:3: rtt_ms: 'nan' is not"),
        (f"{HEADER}\n0,1,50,0.1\n1,1,50,1.1\n", r"t.csv:3: cpu: '1.1' is not a number from 0 to 1"),
        (f"{HEADER}\n0,-1,50,0.1\n", r"t.csv:2: bandwidth_mbps: '-1'"),
        (f"{HEADER}\n\n0,1,50,0.1\n\n1,fast,50,0.1\n", r"t.csv:5: bandwidth_mbps: 'fast'"),
        (f"{HEADER}\n5,1,50,0.1\n\n\n4,1,50,0.1\n", r"t.csv:5: time_s: 4 follows 5"),
        (f"{HEADER}\n0,1,50,0.1\n", r"t.csv: 1 lines of values, at least 2"),
        (f"{HEADER}\n5,1,50,0.1\n5,1,50,0.1\n", r"t.csv:3: time_s: 5 follows 5; times must rise"),
        (f"{HEADER}\n0,1,50,0.1\n900,1,50,0.1\n", r"by at most 60 s"),
        (f'{HEADER}\n0,1,50,"0.1\n', r"t.csv:\d: unexpected end of data"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(FormatError, match=message) as raised:
        recorded_traces(tmp_path / "t.csv", seed=0)
    assert "\n" not in str(raised.value)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"\ufeff{HEADER}\n0,1,50,0.1\n1,2,50,0.1\n", encoding="utf-8")
    assert read_csv(tmp_path / "t.csv")["bandwidth_mbps"].tolist() == [1, 2]


def test_too_little_or_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"0 \.csv files"):
        recorded_traces(tmp_path, seed=0)
    with pytest.raises(UsageError, match=r"shortest recording lasts 19.5 s, 50 s needed"):
        recorded_traces(write(tmp_path / "short.csv", 20), seed=0)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="not UTF-8"):
        read_csv(tmp_path / "binary.csv")


def test_names_of_families_are_told_from_paths() -> None:
    assert known_families("lte, wifi") == ("lte", "wifi")
    assert known_families("lte,recordings/") is None


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.csv"
    path.write_bytes(f"{HEADER}\n0,1,50,0.1\n".encode() + data)
    with contextlib.suppress(SscError):
        assert len(read_csv(path)["cpu"]) >= 2
