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
