"""What a device is told of each way of answering."""

from runtime_server.lab.policy_arms import all_policies, chosen_policies
from runtime_server.lab.scenarios import SCENARIOS


def test_a_fixed_action_is_also_played_by_a_device_that_may_take_its_time(calibrated_bundle):
    every = all_policies(calibrated_bundle, "rpi4", SCENARIOS["lte-router"], 0)
    prompt, packed = chosen_policies(every, ["cut:stem/8", "packed:stem/8"])
    assert (prompt.table, prompt.answers, prompt.options) == (packed.table, packed.answers, ())
    assert packed.options == ("--deadline-ms", "4000")
    last = calibrated_bundle.manifest.info.cuts[-1].name
    assert f"packed:{last}" not in [one.name for one in every]
    assert not [one.name for one in chosen_policies(every, []) if one.name.startswith("packed:")]
