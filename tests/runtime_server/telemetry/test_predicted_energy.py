"""Energy of a device by its target's figures, against sums that can be done by hand."""

import msgspec
import pytest
from reports import REPORT

from runtime_server.telemetry.device_view import device_view
from runtime_server.telemetry.predicted_energy import predicted_energy


@pytest.fixture(scope="module")
def info(small_bundle):
    """The toy's cuts, with round figures for a block each."""
    told = small_bundle.manifest.info
    blocks = [float(10**place) for place in range(len(told.blocks))]
    cost = msgspec.structs.replace(told.targets["rpi4"], block_mj=blocks, radio_mj_per_kb=2.0)
    return msgspec.structs.replace(told, targets={"rpi4": cost})


def view(**told):
    return device_view("pi-1", REPORT | told, None, 1.0)


def test_blocks_are_those_before_each_cut_and_all_of_them_where_nothing_is_shipped(info):
    whole, first = sum(10**place for place in range(len(info.blocks))), info.cuts[1].name
    assert predicted_energy(view(cuts={"local": 4}), info)["blocks"] == whole
    assert predicted_energy(view(cuts={first: 4}, finished={"server": 4}), info)["blocks"] == 1.0
    both = predicted_energy(view(cuts={first: 3, "local": 1}, finished={"server": 3, "device": 1}), info)
    assert both["blocks"] == pytest.approx(0.75 + 0.25 * whole)


def test_a_window_whose_answer_is_late_has_taken_the_rest_as_well(info):
    whole, first = sum(10**place for place in range(len(info.blocks))), info.cuts[1].name
    late = predicted_energy(view(cuts={first: 4}, finished={"server": 3, "fallback": 1}), info)
    assert late["blocks"] == pytest.approx(0.75 + 0.25 * whole)
    answered = {first: 2, "local": 2}
    late = predicted_energy(view(cuts=answered, finished={"device": 2, "fallback": 2}), info)
    assert late["blocks"] == pytest.approx(whole)


def test_the_radio_takes_what_passed_the_interface(info):
    sent = {"cuts": {info.cuts[1].name: 1}, "traffic": [[0, 0, 0], [3_600_000, 1_800_000, 0, 3600], [0, 0, 0, 0]]}
    hop_s = info.front_end.hop_samples / info.front_end.sample_rate
    assert predicted_energy(view(**sent), info)["radio"] == pytest.approx(1.5 * 2.0 * hop_s)
    assert "radio" not in predicted_energy(view(**sent | {"traffic": None}), info)


@pytest.mark.parametrize("told", [{"target": "m2"}, {"cuts": {}}, {"cuts": {"of another bundle": 3}}])
def test_nothing_is_said_where_it_is_not_known(info, told):
    assert predicted_energy(view(**told), info) is None
