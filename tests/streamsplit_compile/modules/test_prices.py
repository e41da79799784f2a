import itertools

import pytest

from streamsplit_compile.cost.cost_model import count_work
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import from_module
from streamsplit_compile.modules.prices import price
from streamsplit_compile.modules.slicing import slice_encoder


def test_the_price_of_a_size_is_that_of_an_encoder_of_that_size(encoder):
    loaded = from_module("small", {}, encoder, None)
    prices = price(loaded, encoder)
    kept = {"features.1": list(range(8)), "features.2": list(range(24)), "features.4": list(range(8))}
    counts = {"features.1": 1, "features.2": 3, "features.4": 1}
    less = [prices.layers[name][-1].macs - prices.layers[name][count].macs for name, count in counts.items()]
    small = from_module("small", {}, slice_encoder(encoder, kept), None)
    assert count_work(loaded.graph.module).macs - sum(less) == count_work(small.graph.module).macs
    assert sum(works[-1].macs for works in prices.layers.values()) < count_work(loaded.graph.module).macs


def test_less_takes_less_and_nothing_takes_nothing(encoder):
    prices = price(from_module("small", {}, encoder, None), encoder)
    fixed, costs = prices.of(load_target("rpi-zero-2w"))
    assert fixed.ms > 0
    for own in costs.values():
        assert own[0].ms == own[0].weight_bytes == own[0].peak_bytes == 0
        assert all(a.ms <= b.ms and a.weight_bytes < b.weight_bytes for a, b in itertools.pairwise(own))
    quarter, _ = prices.of(load_target("rpi-zero-2w"), "int8")
    assert quarter.weight_bytes == pytest.approx(fixed.weight_bytes / 4, abs=2)


def measured(encoder, cuts, block_ms):
    loaded = from_module("small", {}, encoder, None)
    return price(loaded, encoder, cuts).measured(load_target("rpi-zero-2w"), cuts, block_ms)


def test_measured_times_add_up_and_each_layer_has_that_of_its_block(encoder):
    cuts = ["log_mel", "features.0", "features.1", "features.3", "features.4", "normalize"]
    fixed, layers = measured(encoder, cuts, [5.0, 1.0, 7.0, 3.0, 11.0, 2.0])
    assert fixed.ms + sum(own[-1].ms for own in layers.values()) == pytest.approx(29.0)
    assert layers["features.1"][-1].ms == pytest.approx(7.0)
    assert layers["features.4"][-1].ms == pytest.approx(11.0)
    assert layers["features.2"][-1].ms < 3.0  # it shares its block with an activation


def test_a_size_takes_the_share_of_the_measured_time_that_is_predicted(encoder):
    cuts = ["log_mel", "features.0", "features.1", "normalize"]
    target = load_target("rpi-zero-2w")
    _, predicted = price(from_module("small", {}, encoder, None), encoder).of(target)
    _, layers = measured(encoder, cuts, [5.0, 1.0, 7.0, 3.0])
    for name, own in layers.items():
        shares = [cost.ms / own[-1].ms for cost in own]
        assert shares == pytest.approx([cost.ms / predicted[name][-1].ms for cost in predicted[name]])
        assert [cost.weight_bytes for cost in own] == [cost.weight_bytes for cost in predicted[name]]


def test_blocks_that_end_inside_a_layer_count_together(encoder):
    inside = ["log_mel", "features.0", "features.1", "features.2.block.1", "features.4", "normalize"]
    together = ["log_mel", "features.0", "features.1", "features.4", "normalize"]
    split = measured(encoder, inside, [5.0, 1.0, 7.0, 4.0, 10.0, 2.0])
    whole = measured(encoder, together, [5.0, 1.0, 7.0, 14.0, 2.0])
    assert split[0].ms == pytest.approx(whole[0].ms)
    assert split[1]["features.2"][-1].ms == pytest.approx(whole[1]["features.2"][-1].ms)
