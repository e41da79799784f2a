"""A head is what most devices heard: one that sends far more than the others, or other sounds, does not decide it."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_server.labels.head_training import Examples, fit_head, truth_of
from runtime_server.labels.label_shares import shared_out, thinned

LABELS = (("dog",), ("rain",))


@given(st.lists(st.tuples(st.sampled_from("abcdefghij"), st.sampled_from(LABELS)), max_size=200), st.integers(0, 3000))
def test_no_device_has_more_than_the_median_one_and_no_label_of_it_is_lost(rows, flood):
    rows = rows + [("hostile", LABELS[number % 2]) for number in range(flood)]
    devices, labels = [device for device, _ in rows], [own for _, own in rows]
    kept = shared_out(devices, labels)
    before, after = Counter(devices), Counter(devices[place] for place in kept)
    median = sorted(before.values())[len(before) // 2] if before else 0
    assert kept == sorted(set(kept))
    assert {rows[place] for place in kept} == set(rows)
    for device, count in before.items():
        assert after[device] == count if count <= median else after[device] <= median + len(LABELS)


def test_of_two_devices_each_has_all_that_it_sent():
    assert shared_out(["a"] * 3 + ["b"] * 50, [LABELS[0]] * 53) == list(range(53))


@pytest.mark.integration
@pytest.mark.parametrize("flood", [20, 4000])
def test_one_device_of_ten_with_wrong_sounds_has_its_share_and_the_head_stays_right(flood):
    rng = np.random.default_rng(0)
    devices = [f"pi-{number}" for number in range(9) for _ in range(20)] + ["hostile"] * flood
    kinds = np.arange(len(devices)) % 2
    heard = np.where(np.array(devices) == "hostile", 1 - kinds, kinds)  # the one sends rain where a dog barked
    embeddings = rng.normal(size=(len(devices), 8)).astype(np.float32)
    embeddings[:, 0] += 4.0 * heard - 2.0
    labels = [LABELS[kind] for kind in kinds]
    kept = shared_out(devices, labels)
    assert sum(devices[place] == "hostile" for place in kept) / len(kept) == 0.1
    names, truth = truth_of([labels[place] for place in kept])
    head = fit_head(Examples(embeddings[kept], names, truth, np.array(kept), (1, 1)), "small", "test")
    weights = np.frombuffer(head.weights, "<f4").reshape(2, -1)
    honest = embeddings[:180] @ weights.T + np.frombuffer(head.bias, "<f4")
    assert np.mean(honest.argmax(1) == kinds[:180]) > 0.95


@given(st.lists(st.sampled_from([("dog",), ("rain",), ("dog", "rain")]), max_size=400), st.integers(1, 50))
def test_thinned_rows_are_in_proportion_and_none_of_the_labels_is_lost(labels, most):
    labels = [*labels, ("rare",)]
    kept = thinned(labels, most)
    assert kept == sorted(set(kept))
    assert {labels[place] for place in kept} == set(labels)
    assert len(kept) <= max(most, 4) + 3
    if len(labels) <= most:
        assert kept == list(range(len(labels)))
