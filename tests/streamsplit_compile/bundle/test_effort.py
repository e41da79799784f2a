import pytest

from streamsplit_compile.bundle.effort import Effort, expected_effort
from streamsplit_compile.cost.cost_model import BlockWork


def block(macs, weights=0):
    return BlockWork(macs=macs, weight_bytes=weights, activation_bytes=0, kernels=1, peak_activation_bytes=0)


def test_every_window_is_run_once_and_from_each_cut_in_three_encodings():
    # The encoder in torch once; the blocks once; from the waveform all and from the cut half of it, three times each.
    expected = 0.1 * 16 * (1 + 1 + 3 * 1.5)
    assert expected_effort([block(10), block(10)], 100.0, 16, 1).seconds == pytest.approx(expected)
    two = expected_effort([block(10), block(10)], 100.0, 16, 2).seconds
    assert two == pytest.approx(0.1 * 16 * (1 + 2 * (1 + 3 * 1.5)))


def test_memory_grows_with_the_weights():
    small, large = (expected_effort([block(1, weights)], 1.0, 1, 1).peak_bytes for weights in (0, 323_000_000))
    assert large - small == pytest.approx(3.23e9)


@pytest.mark.parametrize(
    ("effort", "said"),
    [
        (Effort(59.0, 1e9), None),
        (Effort(313.0, 1e9), "about 5 min or more and 1.0 GB"),
        (Effort(10.0, 3.2e9), "about 1 min or more and 3.2 GB"),
    ],
)
def test_only_much_is_said_beforehand(effort, said):
    assert effort.notice is None if said is None else said in effort.notice
