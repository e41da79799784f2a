"""Results and events: what is written is read, version 1 as well, and nothing else."""

import msgspec
import pytest

from runtime_edge.errors import FormatError
from runtime_edge.formats.results import (
    ResultEvent,
    WindowResult,
    decode_label_event,
    decode_result,
    decode_result_event,
)

FIRST = {
    "window": 7, "time": 1.5, "embedding": [0.6, 0.8], "uncertainty": 0.25, "cut": "layer1", "encoding": "int8",
    "probe": False, "generation": 3, "finished": "server", "latency_ms": 12.5, "device_ms": 3.0, "network_ms": 8.5,
    "server_ms": 1.0, "frame_bytes": 321, "bandwidth_mbps": 5.0, "rtt_ms": 8.0, "cpu": 0.5,
}  # fmt: skip
"""As version 1 wrote it."""
FIRST_EVENT = {
    "event": "result", "device": "pi-1", "window": 7, "time": 1.5, "labels": {"dog": 0.9}, "detected": ["dog"],
    "uncertainty": 0.25, "cut": "layer1", "finished": "fallback", "generation": 3, "latency_ms": 12.5,
}  # fmt: skip


def encoded(**fields):
    return msgspec.json.encode(fields)


@pytest.mark.parametrize(("finished", "answer"), [("server", "server"), ("device", "device"), ("fallback", "device")])
def test_version_1_is_read_and_its_answer_follows_from_where_it_was_finished(finished, answer):
    result = decode_result(encoded(**FIRST | {"finished": finished}))
    event = decode_result_event(encoded(**FIRST_EVENT | {"finished": finished}))
    assert (result.version, result.answer, result.revises, result.finished) == (1, answer, 0, finished)
    assert (event.version, event.answer, event.revises, event.finished) == (1, answer, 0, finished)


@pytest.mark.parametrize("revises", [0, 1])
@pytest.mark.parametrize("place", [{}, {"file": "yard.wav", "offset_s": 0.0}])
def test_version_2_is_read_as_it_was_written(revises, place):
    result = WindowResult(**FIRST, **place, version=2, answer="exit", revises=revises)
    fields = {name: value for name, value in FIRST_EVENT.items() if name != "event"}
    event = ResultEvent(**fields, **place, version=2, answer="exit", revises=revises)
    line = msgspec.json.encode(result)
    assert (decode_result(line), decode_result_event(msgspec.json.encode(event))) == (result, event)
    assert (msgspec.json.decode(line)["version"], b"revises" in line) == (2, bool(revises))
    assert (b"file" in line, b"offset_s" in line) == (bool(place), bool(place))


def test_events_name_the_generation_of_their_head_from_version_2_on():
    event = decode_result_event(encoded(**FIRST_EVENT | {"version": 2, "answer": "device", "head_generation": 2}))
    assert event.head_generation == 2
    assert decode_result_event(encoded(**FIRST_EVENT)).head_generation is None
    with pytest.raises(FormatError, match=r"^log: events of version 1 have no `head_generation`"):
        decode_result_event(encoded(**FIRST_EVENT | {"head_generation": 2}), "log")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 2}, "must say its `answer`"),
        ({"version": 3, "answer": "device"}, "version"),
        ({"version": 2, "answer": "phone"}, "answer"),
        ({"version": 2, "answer": "device", "revises": -1}, "revises -1 is below 0"),
        ({"answer": "device"}, "version 1 has no"),
        ({"file": "yard.wav", "offset_s": 0.5}, "version 1 has no"),
        ({"version": 2, "answer": "device", "file": "yard.wav"}, "both `file` and `offset_s`"),
        ({"version": 2, "answer": "device", "offset_s": 0.5}, "both `file` and `offset_s`"),
        ({"other": 1}, "other"),
    ],
)
def test_anything_else_is_refused_by_name(change, problem):
    with pytest.raises(FormatError, match=f"^log: .*{problem}"):
        decode_result(encoded(**FIRST | change), "log")
    with pytest.raises(FormatError, match=f"^log: .*{problem}"):
        decode_result_event(encoded(**FIRST_EVENT | change), "log")


ON = {
    "event": "on",
    "version": 2,
    "device": "pi-1",
    "label": "rain",
    "score": 0.9,
    "since": 1.0,
    "time": 1.5,
    "window": 3,
}


def test_a_label_event_reads_as_it_was_written():
    event = decode_label_event(encoded(**ON, head_generation=4))
    assert msgspec.to_builtins(event) == ON | {"head_generation": 4}
    assert decode_label_event(encoded(**ON | {"event": "off"})).event == "off"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"event": "result"}, "event"),
        ({"version": 1}, "version 1 has no `on`"),
        ({"since": 2.0}, "since 2.0 is after time 1.5"),
        ({"score": "high"}, "score"),
        ({"other": 1}, "other"),
    ],
)
def test_another_label_event_is_refused_by_name(change, problem):
    with pytest.raises(FormatError, match=f"^log: .*{problem}"):
        decode_label_event(encoded(**ON | change), "log")
