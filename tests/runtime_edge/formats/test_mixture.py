"""What has moved of a mixture, on the wire."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.errors import FrameError
from runtime_edge.formats.mixture import Components, components_bytes, decode_components, encode_components
from runtime_edge.policy.memory import GaussianMemory, parameter_bytes


def some(places: list[int], dim: int, seed: int = 0) -> Components:
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((len(places), dim)).astype(np.float32)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    deviations = rng.uniform(0.01, 0.2, (len(places), dim)).astype(np.float32)
    return Components(np.array(places, np.uint8), np.full(len(places), 0.25, np.float32), means, deviations)


@given(st.sets(st.integers(0, 63), min_size=1, max_size=64), st.integers(4, 40), st.integers(0, 99))
def test_components_come_back_within_half_a_step(places: set[int], dim: int, seed: int) -> None:
    sent = some(sorted(places), dim, seed)
    data = encode_components(sent)
    found = decode_components(data, 64, dim)

    assert len(data) == components_bytes(len(places), dim)
    assert len(data) != parameter_bytes(64, dim), "a whole mixture has another length"
    np.testing.assert_array_equal(found.places, sent.places)
    np.testing.assert_array_equal(found.weights, sent.weights)
    for name in ("means", "deviations"):
        ours, theirs = getattr(sent, name), getattr(found, name)
        assert (np.abs(ours - theirs) <= np.abs(ours).max(axis=1, keepdims=True) / 127 * 0.501).all()


@given(st.binary(max_size=4 * components_bytes(1, 8)))
def test_no_bytes_make_anything_but_components_or_an_error(data: bytes) -> None:
    memory = GaussianMemory(components=4, dim=8)
    try:
        memory.load(data)
    except FrameError:
        return
    assert np.isfinite(memory.means).all()
    assert memory.weights.sum() == pytest.approx(1.0, abs=1e-5)
    assert 0.0 <= memory.uncertainty(np.ones(8, np.float32)) <= 1.0


def test_a_memory_takes_the_components_it_is_given_and_keeps_the_others() -> None:
    memory = GaussianMemory(dim=16)
    before = memory.means.copy()
    sent = some([3, 40], 16)
    memory.load(encode_components(sent))

    np.testing.assert_allclose(memory.means[[3, 40]], sent.means, atol=0.005)
    np.testing.assert_array_equal(np.delete(memory.means, [3, 40], 0), np.delete(before, [3, 40], 0))
    assert memory.weights.sum() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("places", [[40, 3], [3, 3], [64]])
def test_places_out_of_order_or_beyond_the_mixture_are_refused(places: list[int]) -> None:
    memory = GaussianMemory(dim=16)
    before = memory.to_bytes()
    with pytest.raises(FrameError, match="not in order"):
        memory.load(encode_components(some(places, 16)))
    assert memory.to_bytes() == before
