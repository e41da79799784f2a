import hashlib
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_edge.errors import UsageError
from runtime_server.training.buffer import TemporalBuffer, TrainingWindow, chain_number


def window(index, device="a", boot="b0", value=None, shape=(3, 4), **fields):
    activation = torch.full(shape, float(index if value is None else value))
    return TrainingWindow(device, boot, index, **({"generation": 1, "cut": 2, "activation": activation} | fields))


def filled(*windows, **settings):
    buffer = TemporalBuffer(**settings)
    for item in windows:
        buffer.add(item)
    return buffer


def indices(buffer, device="a"):
    return [w.index for w in buffer.windows(device)]


def batch(buffer, size, seed=0):
    return buffer.sample_batch(np.random.default_rng(seed), size)


def devices(groups, names):
    """The device of each window, of `names` with one boot each."""
    numbers = {chain_number(name, "b0"): name for name in names}
    return [numbers[chain] for group in groups for chain in group.chains.tolist()]


def test_late_windows_find_their_place_and_gaps_stay():
    assert indices(filled(*(window(i) for i in (5, 1, 9, 3)))) == [1, 3, 5, 9]


def test_a_duplicate_is_counted_and_the_first_stays():
    buffer = filled(window(1, value=7), window(1, value=8))
    assert buffer.refused == {"duplicate": 1}
    assert buffer.windows("a")[0].activation[0, 0] == 7


def test_the_same_index_of_another_boot_or_device_is_no_duplicate():
    buffer = filled(window(1), window(1, boot="b1"), window(1, device="b"))
    assert len(buffer) == 3


def test_the_buffer_slides_by_window_index():
    buffer = filled(window(0), window(1), window(100), window(101))
    assert indices(buffer) == [100, 101]
    assert not buffer.add(window(1))
    assert buffer.refused == {"late": 1}
    assert buffer.add(window(2))


def test_only_two_boots_of_a_device_are_kept():
    buffer = filled(*(window(i, boot=f"b{i}") for i in range(5)), window(0, device="other"))
    assert [w.boot for w in buffer.windows("a")] == ["b3", "b4"]
    assert indices(buffer, "other") == [0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e6])
def test_an_activation_that_float16_cannot_hold_is_refused(bad):
    buffer = filled(window(0, value=bad))
    assert len(buffer) == 0
    assert buffer.refused == {"invalid": 1}


def test_uncertainty_is_brought_into_its_range():
    buffer = filled(window(0, uncertainty=float("nan")), window(1, uncertainty=-3), window(2, uncertainty=7))
    assert [w.uncertainty for w in buffer.windows("a")] == [1, 0, 1]


def test_the_activation_is_kept_as_a_float16_copy():
    original = torch.ones(2, 100)
    buffer = filled(window(0, activation=original[0]))
    original.zero_()
    kept = buffer.windows("a")[0].activation
    assert kept.dtype == torch.float16
    assert kept.untyped_storage().nbytes() == 200
    assert (kept == 1).all()


def test_a_boot_from_before_the_two_that_are_kept_is_late():
    buffer = filled(window(0, boot="b1", sequence=10), window(0, boot="b2", sequence=20))
    assert not buffer.add(window(7, boot="b0", sequence=5))
    assert buffer.refused == {"late": 1}
    assert buffer.add(window(0, boot="b3", sequence=30))
    assert [w.boot for w in buffer.windows("a")] == ["b2", "b3"]


def test_when_memory_runs_out_the_order_of_the_stream_decides_and_not_that_of_arrival():
    one = filled(window(0)).nbytes
    buffer = filled(*(window(i, sequence=100 - i) for i in range(5)), limit_bytes=3 * one)
    assert indices(buffer) == [0, 1, 2]
    assert buffer.sequences() == [98, 99, 100]


@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_what_is_read_again_in_any_order_gives_the_same_batches(seed):
    rng = np.random.default_rng(seed)
    places = [(d, b, i) for b in ("b2", "b0", "b1") for i in rng.permutation(30)[:20].tolist() for d in "ab"]
    items = [window(i, device=d, boot=b, sequence=n, uncertainty=i / 30) for n, (d, b, i) in enumerate(places, 1)]
    first = filled(*items, horizon=12)
    again = filled(*(items[n] for n in rng.permutation(len(items))), horizon=12)
    assert first.sequences() == again.sequences()
    for one, other in zip(batch(first, 9, seed), batch(again, 9, seed), strict=True):
        assert torch.equal(one.chains, other.chains)
        assert torch.equal(one.windows, other.windows)
        assert torch.equal(one.activations, other.activations)


def test_memory_is_bounded_and_of_equal_shares_the_earliest_arrival_goes_first():
    one = filled(window(0)).nbytes
    buffer = filled(*(window(i, device=d) for i in range(4) for d in "ab"), limit_bytes=3 * one)
    assert buffer.nbytes <= 3 * one
    assert (indices(buffer, "a"), indices(buffer, "b")) == ([3], [2, 3])
    assert not filled(window(0), limit_bytes=one - 1).nbytes


def test_a_device_that_sends_fast_pushes_out_its_own_windows_alone():
    one = filled(window(0)).nbytes
    calm = [window(i, device=d) for i in range(5) for d in ("c1", "c2")]
    buffer = filled(*calm, *(window(i, device="fast") for i in range(90)), limit_bytes=20 * one)
    assert indices(buffer, "c1") == indices(buffer, "c2") == [0, 1, 2, 3, 4]
    assert indices(buffer, "fast") == list(range(80, 90))
    for i in range(5, 30):
        buffer.add(window(i, device="c1"))
    assert Counter(buffer.counts()) == {"c1": 8, "c2": 5, "fast": 7}, "an equal share for those that have more"


def test_large_windows_push_out_those_of_the_same_device():
    one, large = filled(window(0)).nbytes, {"device": "fast", "shape": (64, 64)}
    buffer = filled(*(window(i) for i in range(5)), *(window(i, **large) for i in range(9)), limit_bytes=30 * one)
    assert indices(buffer) == [0, 1, 2, 3, 4]
    assert indices(buffer, "fast") == [7, 8]


@given(seed=st.integers(0, 1 << 32), limit=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_what_is_read_again_in_any_order_leaves_each_device_the_same_share(seed, limit):
    rng = np.random.default_rng(seed)
    devices = rng.choice(["a", "a", "a", "b", "c"], 50).tolist()
    items = [window(n, device=device, sequence=n) for n, device in enumerate(devices, 1)]
    one = filled(window(0)).nbytes
    again = filled(*(items[n] for n in rng.permutation(len(items))), limit_bytes=limit * one)
    assert filled(*items, limit_bytes=limit * one).sequences() == again.sequences()


def test_groups_hold_what_one_suffix_can_run():
    buffer = filled(
        window(0),
        window(1, cut=3),
        window(2, generation=2),
        window(3),
        window(4, shape=(5,)),
        window(5),
    )
    groups = batch(buffer, 10)
    assert [(sorted(g.windows.tolist()), g.cut, tuple(g.activations.shape[1:])) for g in groups] == [
        ([0, 3, 5], 2, (3, 4)),
        ([4], 2, (5,)),
        ([1], 3, (3, 4)),
        ([2], 2, (3, 4)),
    ]
    assert torch.equal(groups[0].activations[:, 0, 0].long(), groups[0].windows)


def drawn(groups):
    return {w for g in groups for w in g.windows.tolist()}


def test_a_window_brings_a_neighbour_in_time_along_whatever_its_cut():
    buffer = filled(*(window(10 * i + j, cut=j % 3) for i in range(9) for j in (0, 2)), horizon=1000)
    for seed in range(20):
        assert {w + 2 - 2 * (w % 10) for w in drawn(batch(buffer, 6, seed))} == drawn(batch(buffer, 6, seed))


def test_every_neighbour_is_brought_along_at_times_and_nothing_farther_off():
    buffer = filled(*(window(i) for i in (50, 51, 53, 54, 90)), window(52, boot="b1"), adjacency=3, horizon=41)
    pairs = {tuple(sorted(drawn(batch(buffer, 2, seed)))) for seed in range(300)}
    alone = {52, 90}  # of another boot, and far away
    assert {pair for pair in pairs if not alone & set(pair)} == {(50, 51), (50, 53), (51, 53), (51, 54), (53, 54)}
    assert {pair for pair in pairs if pair[0] not in alone and 90 in pair}


def test_chains_number_boots_of_devices_alike_in_all_groups():
    places = [(device, boot) for device in "ab" for boot in "xy"]
    items = [window(i, device=d, boot=b, cut=i % 2, value=n) for i in range(4) for n, (d, b) in enumerate(places)]
    seen = set()
    for group in batch(filled(*items), 16):
        seen |= set(zip(group.activations[:, 0, 0].tolist(), group.chains.tolist(), strict=True))
    assert seen == {(n, chain_number(*place)) for n, place in enumerate(places)}


def test_a_chain_has_the_same_number_in_every_process():
    assert (
        chain_number("pi-1", "b") == int.from_bytes(hashlib.blake2b(b"pi-1\0b", digest_size=8).digest(), "little") // 2
    )
    assert len({chain_number(device, boot) for device in ("a", "ab", "b") for boot in ("b", "", "bb")}) == 9


def test_a_batch_is_distinct_windows_balanced_by_device():
    items = [window(i, device="busy") for i in range(90)] + [window(i, device="calm") for i in range(20)]
    buffer = filled(*items, window(0, device="rare"))
    groups = batch(buffer, 31)
    chosen = [(c, w) for g in groups for c, w in zip(g.chains.tolist(), g.windows.tolist(), strict=True)]
    assert len(set(chosen)) == len(chosen) == 23
    found = Counter(devices(groups, ("busy", "calm", "rare")))
    assert found == {"busy": 11, "calm": 11, "rare": 1}, (
        "a third of 31 places each, and nobody fills those of the rare one"
    )


def test_more_devices_than_places_take_turns_fairly():
    names = [f"d{i}" for i in range(10)]
    buffer = filled(*(window(0, device=name, uncertainty=i / 9) for i, name in enumerate(names)))
    rng = np.random.default_rng(0)
    counts = Counter(device for _ in range(500) for device in devices(buffer.sample_batch(rng, 3), names))
    assert set(counts) == set(names)
    assert 110 < min(counts.values()) < max(counts.values()) < 190


def test_an_odd_place_goes_to_either_device_however_unsure():
    buffer = filled(*(window(i, device=d, uncertainty=u) for i in range(5) for d, u in (("a", 1), ("b", 0))))
    rng = np.random.default_rng(0)
    extra = [devices(buffer.sample_batch(rng, 3), "ab").count("a") == 2 for _ in range(400)]
    assert 0.4 < np.mean(extra) < 0.6


def test_single_draws_follow_recency_and_uncertainty():
    buffer = filled(window(0, uncertainty=1.0), window(50, uncertainty=0.1), window(99, uncertainty=0.4))
    rng = np.random.default_rng(0)
    counts = Counter(int(g.windows[0]) for _ in range(3000) for g in buffer.sample_batch(rng, 1))
    weights = np.array([1.1 * np.exp(-99 / 50), 0.2 * np.exp(-49 / 50), 0.5])
    observed = np.array([counts[0], counts[50], counts[99]]) / 3000
    np.testing.assert_allclose(observed, weights / weights.sum(), atol=0.03)


def test_same_seed_same_batch():
    buffer = filled(*(window(i, device=d) for i in range(30) for d in "abc"))
    first, same, other = (batch(buffer, 12, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first.windows, same.windows)
    assert torch.equal(first.chains, same.chains)
    assert not torch.equal(first.windows, other.windows)


def test_an_empty_buffer_gives_no_groups_and_a_batch_needs_a_size():
    assert batch(TemporalBuffer(), 4) == []
    with pytest.raises(UsageError, match="batch size 0"):
        batch(TemporalBuffer(), 0)


@given(
    arrivals=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 40)), max_size=60),
    horizon=st.integers(1, 15),
    places=st.integers(1, 20),
)
@settings(max_examples=150, deadline=None)
def test_any_order_of_arrival_keeps_the_books(arrivals, horizon, places):
    one = filled(window(0)).nbytes
    buffer = TemporalBuffer(horizon=horizon, limit_bytes=places * one)
    taken = sum(buffer.add(window(i, device=d, boot=b)) for d, b, i in arrivals)
    assert taken + sum(buffer.refused.values()) == len(arrivals)
    assert buffer.nbytes == len(buffer) * one <= places * one
    held = [w for d in "ab" for w in buffer.windows(d)]
    assert len(held) == len(buffer)
    for boot in {(w.device, w.boot) for w in held}:
        mine = [w.index for w in held if (w.device, w.boot) == boot]
        assert mine == sorted(set(mine))
        assert mine[-1] - mine[0] < horizon
    assert sum(len(g) for g in batch(buffer, 1000)) == len(held)


def test_threads_may_add_and_sample_at_once():
    buffer, failures = TemporalBuffer(horizon=20), []

    def feed(device):
        try:
            for i in range(300):
                buffer.add(window(i, device=device))
                batch(buffer, 4)
        except Exception as exc:
            failures.append(exc)

    threads = [threading.Thread(target=feed, args=(device,)) for device in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [len(buffer.windows(d)) for d in "abc"] == [20, 20, 20]


def test_of_plain_windows_alone_none_is_drawn_that_a_bottleneck_was_between():
    buffer = filled(*(window(index, plain=index % 3 > 0) for index in range(30)))
    drawn = [index for seed in range(5) for group in buffer.sample_batch(np.random.default_rng(seed), 30, plain=True)
             for index in group.windows.tolist()]  # fmt: skip
    assert set(drawn) == {index for index in range(30) if index % 3}
    assert len(drawn) == 5 * 20
    assert sum(map(len, batch(buffer, 30))) == 30
    assert not filled(window(0, plain=False)).sample_batch(np.random.default_rng(0), 8, plain=True)


def test_devices_without_a_plain_window_take_no_share_of_the_plain_ones():
    others = [window(index, device=f"d{number}", plain=False) for number in range(9) for index in range(8)]
    buffer = filled(*(window(index) for index in range(60)), *others)
    drawn = buffer.sample_batch(np.random.default_rng(0), 48, plain=True)
    assert sum(len(group.windows) for group in drawn) == 48
