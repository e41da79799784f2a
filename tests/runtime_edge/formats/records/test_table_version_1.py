"""Tables of version 1 are upgraded when they are read, and refused by field when they do not hold together."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from example_tables import actions_of, make

from runtime_edge.errors import TableError
from runtime_edge.formats.records.actions import canonical_json
from runtime_edge.formats.records.table import MAX_ACTIONS, SplitterTable
from tools.earlier_formats import table_v1


def test_a_table_of_version_1_is_upgraded() -> None:
    earlier = table_v1(make())
    table = SplitterTable.from_json(earlier, "t.json")
    assert (table.q, table.policy, table.actions, table.cuts) == (make().q, make().policy, make().actions, make().cuts)
    assert [action.encoding for action in table.costs] == [None] * 4, "it does not say: as the device's settings are"
    assert [action.answer for action in table.costs] == ["server", "server", "device", "device"]
    assert table.upgraded_from == "sha256:" + hashlib.sha256(earlier).hexdigest()
    assert SplitterTable.from_json(earlier.strip(), "t.json") == table, "as it stands in a record"
    again = SplitterTable.from_json(table.to_json(), "t.json")
    assert again == table
    assert again.digest == table.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": [3, 1, 0, 2, 1]}, "6 and 5 rows"),
        ({"policy": [3, 1, 0, 2, 1, 3]}, r"policy\[5\]: action 3 is not the best"),
        ({"policy": [9, 1, 0, 2, 1, 0]}, r"policy\[0\]: action 9"),
        ({"policy": [3, 1, 0, 2, 1, 0.5]}, "policy"),
        ({"q": [[1.0, 2.0]] * 6}, r"q\[0\]: 2 numbers for 4 actions"),
        ({"q": [[1.0, 2.0, 3.0, 7e4]] * 6, "policy": [3] * 6}, "q: not all finite and within 65504"),
        ({"q": [[1.0, 2.0, 3.0, None]] * 6}, "q"),
        ({"costs_digest": make().costs_digest}, "costs_digest: not that of costs"),
        ({"ship": None}, "unknown field `ship`"),
    ],
)
def test_a_wrong_field_of_version_1_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TableError, match=message) as caught:
        SplitterTable.from_json(table_v1(make(), **changes), "tables/rpi4.json")
    assert str(caught.value).startswith("tables/rpi4.json: ")
    assert str(caught.value).count("tables/rpi4.json") == 1


def test_version_1_may_have_more_actions_but_is_not_written_with_them() -> None:
    few, names = MAX_ACTIONS, [f"cut{index}" for index in range(30)]
    costs = actions_of(names[:few], (1,) * few)
    table = make(costs=costs, q=((1.0,) * few,) * 6)
    fields = json.loads(table_v1(table))
    fields["costs"] = [{**fields["costs"][0], "name": name} for name in names]
    fields["costs_digest"] = "sha256:" + hashlib.sha256(
        canonical_json([fields["costs"], fields["uplink"]]).encode()
    ).hexdigest()  # fmt: skip
    fields |= {"q": [[1.0] * 30] * 6, "policy": [0] * 6}
    earlier = SplitterTable.from_json(json.dumps(fields).encode(), "t.json")
    assert len(earlier.actions) == 30
    assert earlier.digest.startswith("sha256:")
    with pytest.raises(TableError, match="costs: 30 actions, a table has at most 24; train it with fewer cuts"):
        earlier.to_json()
