import numpy as np
import pytest

from tools.module_adaptation_figures import bytes_down, communication, difference, section


def line(arm, right, values, seed=0):
    return {
        "data": "speech_commands", "words": 5, "seed": seed, "arm": arm, "devices": 2, "steps": 2,
        "values_down": values, "windows_up": [10.0, 30.0], "whole_values": 1000, "activation": 352,
        "clips": [1, 2, 3], "heard": [2, 1, 1], "right": right, "own": right,
    }  # fmt: skip


def test_bytes_are_four_a_value_and_frames_have_scales_and_a_header():
    one = line("ours", [0, 1, 1], [100.0, 200.0])
    assert bytes_down(one) == 600
    assert communication(one) == 600 + 20 * (352 + 160 + 48)


def test_a_difference_is_that_of_the_pooled_shares_of_one_seed():
    better = [line("a", [1, 1, 1], [0]), line("a", [2, 1, 1], [0], seed=1)]
    worse = [line("b", [0, 1, 1], [0]), line("b", [1, 0, 1], [0], seed=1)]
    points, said = difference(better, worse)
    assert points == pytest.approx(100 * (np.mean([1, 1, 0, 1, 1, 1, 1, 1]) - np.mean([0, 1, 0, 1, 1, 0, 0, 1])))
    assert said.startswith(f"{points:.1f} (")


@pytest.mark.parametrize("arm", ["ours", "enhanced"])
def test_what_is_judged_stands_beside_no_adaptation_and_averaging(arm):
    lines = [line("none", [0, 1, 0], [0.0, 0.0]), line("averaged", [0, 1, 1], [900.0, 900.0])]
    assert section(lines).numbers == {}
    found = section([*lines, line(arm, [1, 1, 1], [100.0, 200.0])]).numbers
    assert found[f"adaptation_gain.{arm}"] == 50
    assert found[f"bytes_down_share.{arm}"] == pytest.approx(0.15)
    assert found[f"communication_ratio.{arm}"] == pytest.approx((3600 + 11200) / (600 + 11200), abs=1e-4)
