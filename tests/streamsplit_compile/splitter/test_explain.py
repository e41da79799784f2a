"""An explanation names the choice, its terms, and the nearest values at which it turns."""

from __future__ import annotations

import pytest
from small_tables import make_table

from runtime_edge.errors import UsageError
from runtime_edge.formats.records.table import StateAxis
from streamsplit_compile.splitter.explain import explain

STATE = {"uncertainty": 0.5, "cpu": 0.5, "bandwidth_mbps": 1.5, "rtt_ms": 60.0}
LOW, MIDDLE, HIGH = (0.0, 0.0, 1.0, 9.0, 0.0), (0.0, 9.0, 1.0, 0.0, 0.0), (9.0, 0.0, 1.0, 0.0, 0.0)


def test_the_choice_and_its_terms_are_those_of_the_reward() -> None:
    found = explain(make_table((LOW, MIDDLE, HIGH), edges=(1.0, 4.0)), STATE)
    assert (found.chosen, found.row) == ("layer1", 1)
    assert found.q == {"waveform": 0.0, "layer1": 9.0, "layer2": 1.0, "embedding": 0.0, "local": 0.0}
    # layer1: 20 ms twice as slow, 16 000 bytes at 187.5 bytes/ms, 60 ms round trip, 3 ms on the server.
    terms = found.terms["layer1"]
    transfer_ms = 16_000 / 187.5
    assert terms.latency_ms == pytest.approx(40 + transfer_ms + 63)
    assert terms.energy_mj == pytest.approx(80 + 32 + 0.1 * transfer_ms)
    assert terms.total == pytest.approx(9.9 + 10 * 0.2 * 0.5 - 5 * terms.latency_ms / 200 - 3 * terms.energy_mj / 100)
    assert found.terms["local"].latency_ms == pytest.approx(160)


def test_what_would_change_the_choice() -> None:
    found = explain(make_table((LOW, MIDDLE, MIDDLE, HIGH), edges=(1.0, 2.0, 4.0)), STATE)
    assert [str(turn) for turn in found.turns] == [
        "bandwidth_mbps from 4 Mbit/s: waveform",
        "bandwidth_mbps below 1 Mbit/s: embedding",
    ]
    at_the_edge = explain(make_table((LOW, MIDDLE), edges=(1.5,)), STATE)
    assert at_the_edge.chosen == "layer1"
    assert [str(turn) for turn in at_the_edge.turns] == ["bandwidth_mbps below 1.5 Mbit/s: embedding"]


def test_turns_are_looked_for_along_every_variable() -> None:
    axes = (StateAxis(name="cpu", edges=(0.8,)), StateAxis(name="bandwidth_mbps", edges=(4.0,)))
    table = make_table((MIDDLE, MIDDLE, HIGH, LOW), state=axes)
    assert [str(turn) for turn in explain(table, STATE).turns] == ["cpu from 0.8: waveform"]
    assert explain(make_table((MIDDLE,) * 4, state=axes), STATE).turns == []


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"cpu": 0.1}, "bandwidth_mbps, rtt_ms, uncertainty missing"),
        ({**STATE, "mood": 1.0}, "mood not known; this table needs bandwidth_mbps, cpu"),
    ],
)
def test_a_state_that_is_not_whole_is_refused(state: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        explain(make_table((LOW, HIGH)), state)
