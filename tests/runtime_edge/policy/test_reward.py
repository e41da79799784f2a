"""Which action runs the whole encoder, where coding a latent takes longer than that."""

from msgspec.structs import replace
from small_tables import make_table

from runtime_edge.policy.reward import whole


def test_a_bottleneck_is_never_the_whole_encoder_however_long_it_takes():
    costs = make_table([(0.0,) * 5, (0.0,) * 5]).costs
    last = max(costs, key=lambda action: action.device_ms)
    dear = replace(costs[1], name=f"{costs[1].cut}/64", width=64, device_ms=1e3)
    assert whole([*costs, dear]) == last
    early = replace(costs[1], name=f"{costs[1].cut}+exit", answer="exit", exit_quality=(0.9,), device_ms=1e3)
    assert whole([*costs, early]) == last
