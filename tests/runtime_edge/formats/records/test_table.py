"""A table file survives a round trip, and anything wrong is refused in a line that names the field."""

from __future__ import annotations

import base64
import contextlib
import json
import math
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from example_tables import COSTS, CUTS, actions_of, make
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from runtime_edge.errors import TableError
from runtime_edge.formats.records.actions import (
    STREAMS,
    Encoding,
    LinkRadio,
    ShipThresholds,
    Uplink,
    costs_digest,
)
from runtime_edge.formats.records.table import (
    LOCAL,
    MAX_Q,
    MAX_TABLE_BYTES,
    Limits,
    SplitterTable,
    StateAxis,
    StateName,
    cuts_digest,
)
from runtime_edge.formats.records.table_values import as_stored, q_rows
from runtime_edge.formats.wire import WIRE_ENCODINGS
from tools.earlier_formats import table_v1


def edited(**changes: Any) -> bytes:
    return json.dumps(json.loads(make().to_json()) | changes).encode()


def q_of(*values: float) -> str:
    """Values as the field `q` of a file."""
    return base64.b64encode(np.array(values, "<f2").tobytes()).decode()


def with_costs(index: int, **changes: Any) -> list[dict[str, Any]]:
    costs = msgspec.to_builtins(COSTS)
    return [action | changes if place == index else action for place, action in enumerate(costs)]


finite = st.floats(-1e6, 1e6, allow_nan=False)
stored = st.floats(-MAX_Q, MAX_Q, width=16)
names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"]), min_size=1, max_size=30)


@st.composite
def tables(draw: st.DrawFn) -> SplitterTable:
    cuts = draw(st.lists(names.filter(lambda name: name != LOCAL), min_size=1, max_size=5, unique=True))
    actions = (*cuts, LOCAL)
    variables: list[StateName] = draw(
        st.lists(st.sampled_from(["uncertainty", "cpu", "rtt_ms", "battery"]), min_size=1, max_size=3, unique=True)
    )
    edges = st.lists(finite, max_size=3, unique=True).map(lambda values: tuple(sorted(values)))
    axes = tuple(StateAxis(name=name, edges=draw(edges)) for name in variables)
    rows = math.prod(len(axis.edges) + 1 for axis in axes)
    row = st.tuples(*[stored] * len(actions))
    q = q_rows(as_stored(draw(st.lists(row, min_size=rows, max_size=rows))))
    return make(
        costs=actions_of(
            actions, (*draw(st.lists(st.integers(0, 1 << 31), min_size=len(cuts), max_size=len(cuts))), 0)
        ),
        limits=draw(
            st.builds(Limits, mb_per_hour=st.none() | st.floats(0.1, 1e6), price_per_kb=st.floats(0, 10), min_cut=names)
        ),
        discount=draw(st.floats(0, 0.99)),
        dead_band=draw(st.floats(0, 0.5)),
        dwell=draw(st.integers(0, 100)),
        bundle_cuts=cuts_digest(cuts),
        state=axes,
        q=q,
        hysteresis=draw(st.floats(0, 10)),
        probe_rate=draw(st.floats(0, 0.2)),
        metrics=draw(st.dictionaries(names, finite, max_size=3)),
        encoder=draw(names),
    )


@settings(max_examples=60, deadline=None)
@given(tables())
def test_reading_what_was_written_gives_the_same_table_and_the_same_bytes(table: SplitterTable) -> None:
    data = table.to_json()
    again = SplitterTable.from_json(data, "t.json")
    assert again == table
    assert again.to_json() == data
    assert again.policy == table.policy
    assert json.loads(data)["format"] == "streamsplit.table/2"


def test_whole_numbers_are_written_as_they_are_read() -> None:
    whole = make(hysteresis=1, state=(StateAxis(name="cpu", edges=(1, 2, 3, 4, 5)),))
    assert whole.to_json() == SplitterTable.from_json(whole.to_json(), "t.json").to_json()


def test_lookup_is_row_major_with_the_lower_edge_inside() -> None:
    table = make()
    rows = [
        table.lookup({"uncertainty": u, "bandwidth_mbps": b, "unused": 1.0})
        for u in (0.0, 0.5)
        for b in (0.1, 1.0, 4.0)
    ]
    assert rows == [0, 1, 2, 3, 4, 5]
    assert table.lookup({"uncertainty": 0.49, "bandwidth_mbps": 3.99}) == 1
    values = np.random.default_rng(0).uniform(-1, 6, 200)
    expected = np.digitize(values, [1.0, 4.0])
    assert [table.lookup({"uncertainty": 0.0, "bandwidth_mbps": value}) for value in values] == expected.tolist()


def test_a_state_that_is_not_measured_is_named() -> None:
    with pytest.raises(TableError, match="state variable uncertainty"):
        make().lookup({"bandwidth_mbps": 1.0})


def test_a_table_fits_the_bundle_it_was_made_for_and_no_other() -> None:
    table = make()
    table.check_cuts(CUTS)
    with pytest.raises(TableError, match="no cut 'layer1', only waveform, layer2"):
        table.check_cuts(["waveform", "layer2", "embedding"])
    with pytest.raises(TableError, match=r"bundle_cuts: .*other cuts"):
        table.check_cuts(["waveform", "layer1", "layer2", "embedding"])
    with pytest.raises(TableError, match="not in the order"):
        make(costs=actions_of(("layer1", "waveform", "embedding", LOCAL), (1, 1, 1, 0))).check_cuts(CUTS)
    make(costs=actions_of(("waveform", "embedding"), (1, 1)), q=((1.0, 0.0),) * 6).check_cuts(CUTS)


WRONG_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"colour": 1}, "unknown field `colour`"),
    ({"format": "streamsplit.table/3"}, "format"),
    ({"format": 2}, "format"),
    ({"target": ""}, "target"),
    ({"costs": []}, "costs"),
    ({"costs": with_costs(1, name="waveform")}, "costs: a name appears twice"),
    ({"costs": with_costs(2, bytes=-3)}, r"costs\[2\]\.bytes|costs\[...\]\.bytes"),
    ({"costs": with_costs(2, colour=1)}, "unknown field `colour`"),
    ({"costs": with_costs(1, quality=[])}, "quality"),
    ({"costs": with_costs(3, bytes=4)}, "costs: local"),
    ({"costs": with_costs(3, teaches=True)}, "costs: local"),
    ({"costs": with_costs(1, device_ms=11.5)}, "costs_digest: not that of costs"),
    ({"limits": {"mb_per_hour": 0}}, r"limits\.mb_per_hour"),
    ({"discount": 1.0}, "discount"),
    ({"dead_band": 0.6}, "dead_band"),
    ({"dwell": -1}, "dwell"),
    ({"state": []}, "state"),
    ({"state": [{"name": "mood", "edges": []}]}, "state"),
    ({"state": [{"name": "cpu", "edges": [0.5, 0.5]}]}, "edges of cpu"),
    (
        {"state": [{"name": "cpu", "edges": []}, {"name": "cpu", "edges": []}]},
        "state: a name appears twice",
    ),
    ({"state": [{"name": "cpu", "edges": [0.5]}]}, "values: 24 bytes, expected 8: 2 numbers"),
    ({"reward": {"t_max_ms": 0}}, r"reward\.t_max_ms"),
    ({"reward": {"alpha": -1}}, r"reward\.alpha"),
    ({"reward": {"gamma": 1}}, "unknown field `gamma`"),
    ({"hysteresis": -0.1}, "hysteresis"),
    ({"hysteresis": "0.1"}, "hysteresis"),
    ({"hysteresis": True}, "hysteresis"),
    ({"probe_rate": 0.3}, "probe_rate"),
    ({"costs_digest": "sha256:0"}, "costs_digest"),
    ({"bundle_cuts": None}, "bundle_cuts"),
    ({"metrics": {"regret": "low"}}, "metrics"),
    ({"costs": with_costs(0, encoding="float17")}, "encoding"),
    ({"costs": with_costs(0, encoding=None, cut="layer1", name="a")}, "costs_digest"),
    ({"costs": with_costs(0, width=-1)}, "width"),
    ({"costs": with_costs(0, answer="nobody")}, "answer"),
    ({"costs": with_costs(3, encoding="int8")}, "costs: local"),
    ({"costs": with_costs(3, answer="server")}, "costs: local"),
    ({"costs": with_costs(3, name="home")}, "costs: home: the action local"),
    ({"costs": with_costs(1, cut="waveform")}, "costs: an action appears twice"),
    (
        {"costs": [{**action, "name": f"{place}"} for place in range(25) for action in with_costs(0)[:1]]},
        "at most 24",
    ),
    ({"ship": {"min_entropy": 0.5}}, "ship: min_entropy 0.5 is not less"),
    ({"ship": {"max_entropy": 1.5}}, r"ship\.max_entropy"),
    ({"ship": {"exploration": 0.3}}, r"ship\.exploration"),
    ({"ship": {"colour": 1}}, "unknown field `colour`"),
    ({"upgraded_from": "sha256:1"}, "upgraded_from"),
    ({"policy": [3, 1, 0, 2, 1, 0]}, "unknown field `policy`"),
    ({"q": [[1.0, 2.0, 3.0, 4.0]] * 6}, "q"),
    ({"q": "AAAA"}, "q: 3 bytes, expected 48: 6 x 4 numbers"),
    ({"q": "not base64!"}, "q"),
    ({"q": q_of(*[0.0] * 23, math.nan)}, "q: not all finite and within 65504"),
    ({"q": q_of(*[0.0] * 23, math.inf)}, "q: not all finite and within 65504"),
    ({"q": q_of(-math.inf, *[0.0] * 23)}, "q: not all finite and within 65504"),
    ({"q": q_of(*[1.0] * 24)}, "q: the best action of a row is 0, and none is above it"),
    ({"q": q_of(*[-1.0] * 24)}, "q: the best action of a row is 0, and none is above it"),
    ({"values": "AAAA"}, "values: 3 bytes, expected 24: 6 numbers"),
    ({"values": base64.b64encode(np.full(6, np.nan, "<f4").tobytes()).decode()}, "values: not all finite"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_FIELDS)
def test_a_wrong_field_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TableError, match=message) as caught:
        SplitterTable.from_json(edited(**changes), "tables/rpi4.json")
    assert str(caught.value).startswith("tables/rpi4.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", json.loads(make().to_json()))
def test_only_what_has_a_default_may_be_missing(field: str) -> None:
    fields = json.loads(make().to_json())
    del fields[field]
    if field in ("ship", "upgraded_from"):
        assert SplitterTable.from_json(json.dumps(fields).encode(), "t.json") == make()
    elif field == "format":
        with pytest.raises(TableError, match=r"t.json: .*unknown field"):  # it was version 1's to leave out
            SplitterTable.from_json(json.dumps(fields).encode(), "t.json")
    else:
        with pytest.raises(TableError, match=f"t.json: .*`{field}`"):
            SplitterTable.from_json(json.dumps(fields).encode(), "t.json")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"null",
        b"[" * 5000,
        make().to_json().replace(b"0.01", b"NaN"),
        table_v1(make()).replace(b"9.0", b"NaN"),
        b'{"a":1e999}',
    ],
)
def test_what_is_no_table_is_refused(data: bytes) -> None:
    with pytest.raises(TableError, match=r"^t\.json: "):
        SplitterTable.from_json(data, "t.json")


def test_size_is_bounded_on_both_sides() -> None:
    with pytest.raises(TableError, match="more than 65536"):
        SplitterTable.from_json(b" " * (MAX_TABLE_BYTES + 1), "t.json")
    rows = 64 * 64
    axes = tuple(StateAxis(name=name, edges=tuple(map(float, range(63)))) for name in ("cpu", "rtt_ms"))
    costs = actions_of([f"cut{index}" for index in range(24)], (1,) * 24)
    big = make(state=axes, costs=costs, q=((1.0,) * 24,) * rows)
    with pytest.raises(TableError, match="use fewer bins or fewer cuts"):
        big.to_json()


def test_a_table_that_does_not_hold_together_cannot_be_built() -> None:
    with pytest.raises(TableError, match="metrics"):
        make(metrics={"regret": math.inf})
    with pytest.raises(TableError, match=r"q\[0\]"):
        make(q=((math.nan,) * 4,) * 6)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_refused_or_harmless_but_never_crashes(data: st.DataObject) -> None:
    whole = bytearray(make().to_json())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(whole))))
    with contextlib.suppress(TableError):
        table = SplitterTable.from_json(bytes(whole[:cut]), "t.json")
        assert SplitterTable.from_json(table.to_json(), "t.json") == table


def test_the_encodings_of_actions_are_those_of_frames() -> None:
    assert set(get_args(Encoding)) == set(WIRE_ENCODINGS)


def test_audio_is_an_encoding_of_the_first_cut_alone() -> None:
    def of(cut: str, encoding: Encoding) -> SplitterTable:
        costs = tuple(replace(one, encoding=encoding) if one.cut == cut else one for one in COSTS)
        return make(costs=costs)

    for encoding in STREAMS:
        of("waveform", encoding).check_cuts(CUTS)
        with pytest.raises(TableError, match=f"costs: layer1: {encoding} is an encoding only for waveform"):
            of("layer1", encoding).check_cuts(CUTS)


def test_the_thresholds_of_what_is_shipped_are_kept() -> None:
    thresholds = ShipThresholds(min_entropy=0.05, max_entropy=0.5, exploration=0.1, warm_up=200)
    table = make(ship=thresholds)
    assert SplitterTable.from_json(table.to_json(), "t.json").ship == thresholds
    assert ShipThresholds() == ShipThresholds(min_entropy=0.02, max_entropy=0.4, max_entropy_scale=1.0)
    assert SplitterTable.from_json(make().to_json(), "t.json").ship is None


def test_a_table_that_knows_no_link_keeps_its_bytes_and_one_that_does_says_which() -> None:
    without = make()
    assert b"radio" not in without.to_json()
    uplink = Uplink(mj_per_kb=2.27, transmit_w=0.133, radio=LinkRadio(link="lte", message_mj=521.4))
    with_link = make(uplink=uplink, costs_digest=costs_digest(COSTS, uplink))
    read = SplitterTable.from_json(with_link.to_json(), "t.json")
    assert read.uplink == uplink
    assert read.costs_digest != without.costs_digest
    refused = with_link.to_json().replace(b'"message_mj":521.4', b'"message_mj":-1')
    with pytest.raises(TableError, match=r"t\.json: .*message_mj"):
        SplitterTable.from_json(refused, "t.json")
