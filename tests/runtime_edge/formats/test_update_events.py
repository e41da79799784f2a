"""Events about updates: each kind with its fields, in both versions, and nothing else."""

import msgspec
import pytest

from runtime_edge.errors import FormatError
from runtime_edge.formats.update_events import UpdateEvent, decode_update_event

BUNDLE = {"generation": 2, "digest": "sha256:" + "2" * 64}
REASON = {"reason": "the self-test is off by 0.5"}
KINDS = [
    ("fetched", BUNDLE | {"bytes": 900, "assets": 1, "patches": 0}),
    ("generation", BUNDLE),
    ("proven", BUNDLE),
    ("retired", {"generation": 1, "oldest": 2}),
    ("update_failed", REASON),
    ("update_failed", BUNDLE | REASON),
    ("update_refused", REASON),
    ("update_refused", BUNDLE | REASON),
    ("rolled_back", BUNDLE | REASON),
    ("table_refused", REASON),
    ("head_refused", REASON),
]


def encoded(**fields):
    return msgspec.json.encode(fields)


@pytest.mark.parametrize("version", [{}, {"version": 2}])
@pytest.mark.parametrize(("kind", "fields"), KINDS)
def test_each_kind_is_read_as_it_was_written(kind, fields, version):
    written = {"event": kind, "device": "pi-1", **version, **fields}
    event = decode_update_event(encoded(**written))
    assert msgspec.to_builtins(event) == written
    assert event.version == version.get("version", 1)
    assert decode_update_event(msgspec.json.encode(event)) == event


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"event": "result"}, "event"),
        ({"event": "exploded"}, "exploded"),
        ({"version": 3}, "version"),
        ({"version": True}, "version"),
        ({"device": None}, "device"),
        ({"reason": "why"}, "`generation` has digest, generation, reason; expected digest, generation"),
        ({"other": 1}, "other"),
        ({"generation": "two"}, "generation"),
        ({"event": "proven", "generation": None}, "`proven` has digest; expected digest, generation"),
        ({"event": "retired"}, "`retired` has digest, generation; expected generation, oldest"),
    ],
)
def test_anything_else_is_refused_by_name(change, problem):
    with pytest.raises(FormatError, match=f"^log: .*{problem}"):
        decode_update_event(encoded(**{"event": "generation", "version": 2, "device": "pi-1"} | BUNDLE | change), "log")


def test_a_fetched_bundle_s_size_is_called_bytes_on_the_wire():
    event = UpdateEvent(event="fetched", device="pi-1", fetched_bytes=900)
    assert msgspec.json.decode(msgspec.json.encode(event))["bytes"] == 900
