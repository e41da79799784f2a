"""The file of `ssc bench device`: it round-trips, what does not hold together is named, and nothing else comes out."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.errors import FormatError, UsageError
from runtime_edge.formats.records.device_bench import MAX_DEVICE_BENCH_BYTES, DeviceBench, MeasuredVariant


def row(variant: str = "onnx-fp32", ms: float = 2.0, **changes: object) -> MeasuredVariant:
    fields = {
        "variant": variant, "provider": "cpu", "threads": 1, "runtime": "onnxruntime 1.32.0", "runs": 50,
        "block_ms": [ms, ms], "block_p90_ms": [ms, ms], "block_mj": [4.0, 5.0], "memory_mb": 80.0,
    }  # fmt: skip
    return MeasuredVariant(**(fields | changes))


def bench(*rows: MeasuredVariant, **changes: object) -> DeviceBench:
    fields = {
        "created": "2026-11-30T00:00:00+00:00", "target": "rpi4", "encoder": "toy", "weights": f"sha256:{'0' * 64}",
        "blocks": ["block-00", "block-01"], "machine": {"processor": "Raspberry Pi 4", "architecture": "aarch64"},
        "python_ms": 3.5, "meter": "ina3221 VDD_IN", "idle_w": 2.7, "variants": list(rows or [row()]),
        "skipped": {"tflite-fp32": "its runtime is not installed"},
    }  # fmt: skip
    return DeviceBench(**(fields | changes))


WHOLE = bench(row(), row(threads=4, ms=1.0), row("onnx-int8", ms=0.5))

_MS = st.lists(st.floats(0, 1e7), min_size=2, max_size=2)
_ROWS = st.builds(
    row,
    variant=st.sampled_from(["onnx-fp32", "tflite-int8"]),
    ms=st.floats(0, 1e6),
    provider=st.sampled_from(["cpu", "xnnpack", "coreml"]),
    threads=st.integers(1, 256),
    block_p90_ms=_MS,
    block_mj=_MS,
)


@given(st.lists(_ROWS, min_size=1, max_size=5, unique_by=lambda one: (one.variant, one.provider, one.threads)))
def test_it_round_trips(rows: list[MeasuredVariant]) -> None:
    found = bench(*rows)
    assert DeviceBench.from_json(found.to_json(), "device.json") == found


@given(st.data())
def test_a_damaged_file_is_read_or_refused_in_one_line(data: st.DataObject) -> None:
    good = bytearray(WHOLE.to_json())
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError):
        again = DeviceBench.from_json(bytes(good), "device.json")
        assert all(len(one.block_ms) == len(again.blocks) for one in again.variants)
        assert DeviceBench.from_json(again.to_json(), "device.json") == again


@given(st.binary(max_size=200))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"device\.json: ") as caught:
        DeviceBench.from_json(data, "device.json")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(FormatError, match="more than 1048576"):
        DeviceBench.from_json(b" " * (MAX_DEVICE_BENCH_BYTES + 1), "device.json")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (bench(blocks=["a", "a"]), "blocks: a name appears twice"),
        (bench(row(block_ms=[1.0])), r"variants\[0\]\.block_ms: 1 numbers for 2 blocks"),
        (bench(row(), row(threads=2, block_mj=[1.0])), r"variants\[1\]\.block_mj: 1 numbers for 2 blocks"),
        (bench(row(block_mj=None)), r"variants\[0\]\.block_mj: energy needs a meter"),
        (bench(meter=None, idle_w=None), r"variants\[0\]\.block_mj: energy needs a meter"),
        (bench(idle_w=None), "idle_w: it is the meter's"),
        (bench(row(), row()), "variants: the same variant, provider and threads twice"),
        (bench(row(ms=-1.0)), r"block_ms"),
        (bench(python_ms=0.0), "python_ms"),
        (bench(weights="sha256:00"), "weights"),
        (bench(row(provider="cuda")), "provider"),
    ],
)
def test_what_does_not_hold_together_is_named(changed: DeviceBench, message: str) -> None:
    with pytest.raises(FormatError, match=rf"device\.json: .*{message}"):
        DeviceBench.from_json(changed.to_json(), "device.json")


def test_the_fastest_is_one_that_changes_no_embedding_unless_another_is_asked_for() -> None:
    assert WHOLE.fastest().threads == 4
    assert WHOLE.fastest("onnx-int8").whole_ms == 1.0
    assert bench(row("onnx-int8")).fastest().variant == "onnx-int8"
    with pytest.raises(UsageError, match="no variant 'tflite-fp32' was measured, only onnx-fp32, onnx-int8"):
        WHOLE.fastest("tflite-fp32")


def test_a_number_that_is_none_is_refused() -> None:
    text = msgspec.json.encode(WHOLE).replace(b'"python_ms":3.5', b'"python_ms":1e400')
    with pytest.raises(FormatError):
        DeviceBench.from_json(text, "device.json")
