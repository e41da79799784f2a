"""Ten devices train one encoder, and one of them is hostile: what its windows do to the others'.

Honest devices hear soundscapes of their own. The held-out loss of each is measured after the same training with and
without the hostile one, on the same windows and views. The numbers are printed (`pytest -s`).

Any tenth device, an honest one as well, takes a tenth of every batch from the others, and one training differs from
another: of a single device the loss then moves by 1 % either way. So other seeds count together.
"""

import numpy as np
import pytest
import torch

from runtime_server.releases.release_gate import first_model
from runtime_server.suffix.generations import cut_model
from runtime_server.training.buffer import TrainingWindow
from runtime_server.training.trainer import TrainConfig, Trainer
from streamsplit_compile.bundle.soundscape import soundscape
from streamsplit_compile.encoder.segment import run_segments

pytestmark = pytest.mark.integration

HONEST = [f"pi-{number}" for number in range(9)]
CUT, STEPS = 1, 60
BATCH = 80
GROWN = 90
"""Nine windows of each of ten devices, as `BATCH` has of nine."""
WINDOWS = 128
RISE = 0.01
"""Share by which the held-out loss of any honest device may rise because of the hostile one."""


@pytest.fixture(scope="module")
def heard(small_bundle):
    """(devices, windows, samples) float32."""
    info = small_bundle.manifest.info.front_end
    length, hop = info.window_samples, info.hop_samples
    found = []
    for seed in range(len(HONEST) + 1):
        audio = soundscape((length + WINDOWS * hop) / info.sample_rate, info.sample_rate, seed=100 + seed)
        found.append(np.stack([audio[i * hop : i * hop + length] for i in range(WINDOWS)]))
    return np.stack(found)


@pytest.fixture
def fleet(generations, heard):
    """`fleet(attack, seed, steps, bounded, batch)`: held-out loss of each honest device; no attack, no tenth device.

    Unbounded, what is out of range trains all the same, as it did before there was a range.
    """
    generation = generations.newest

    def windows(place):
        name, segments = [*HONEST, "zz"][place], generation.model.segments
        for index, samples in enumerate(heard[place]):
            with torch.inference_mode():
                activation = run_segments(segments[:CUT], torch.from_numpy(samples)[None])
            yield TrainingWindow(name, "boot", index, 1, CUT, activation)

    honest = [window for place in range(len(HONEST)) for window in windows(place)]
    own = list(windows(len(HONEST)))

    def run(attack, seed, steps=STEPS, bounded=True, batch=BATCH):
        config = TrainConfig(batch=batch, learning_rate=3e-4, ema=0.95, min_windows=8, seed=seed)
        trainer = Trainer(first_model(generations.graph, generation), config, 6, key=b"key")
        judge = Trainer(first_model(generations.graph, generation), TrainConfig(batch=144), 6, key=b"key")
        for window in honest:
            trainer.add(window)
            judge.add(window)
        for index, window in enumerate(own if attack else ()):
            activation = attack(window, honest[index], generation)
            in_range = not bounded or generation.in_range(window.cut, activation[None]) == [True]
            trainer.add(TrainingWindow("zz", "boot", index, 1, window.cut, activation, in_range=in_range))
        for _ in range(steps):
            trainer.step()
        averaged = cut_model(generations.graph, generation.bundle, trainer.averaged_tensors())
        (judged,) = judge.judge([averaged])
        return np.array([judgement.loss for judgement in judged])

    return run


def constant(window, other, generation):
    return torch.full_like(window.activation, 1e4)


def constant_within_range(window, other, generation):
    value = 1e4
    while generation.in_range(window.cut, torch.tensor([[value]])) == [False]:
        value *= 0.9
    return torch.full_like(window.activation, value)


def scaled(window, other, generation):
    return 1000 * window.activation


def scaled_within_range(window, other, generation):
    return 3 * window.activation


def copied(window, other, generation):
    return other.activation


ATTACKS = (constant, constant_within_range, scaled, scaled_within_range, copied)


def rises(fleet, seed):
    """By attack: the share by which each honest device's held-out loss is above that without the hostile one."""
    alone = fleet(None, seed)
    untrained = fleet(None, seed, steps=0)
    print(f"\nseed {seed}: before training {untrained.mean():.4f}, without a hostile device {alone.mean():.4f}")
    found = {attack.__name__: fleet(attack, seed) / alone - 1 for attack in ATTACKS}
    for name, rise in found.items():
        print(f"  {name}: {rise.mean():+.2%}, {rise.max():+.2%} the worst device")
    return found


def test_one_hostile_device_of_ten_costs_each_of_the_others_at_most_a_hundredth(fleet):
    found = rises(fleet, seed=0)
    assert {name: rise.max() for name, rise in found.items() if rise.max() > RISE} == {}
    assert not found["constant"].any(), "it takes no part"
    assert not found["scaled"].any(), "it takes no part"


def test_without_the_range_the_same_windows_do_more_harm_than_training_does_good(fleet):
    before, alone = fleet(None, 0, steps=0).mean(), fleet(None, 0).mean()
    for attack in (constant, scaled):
        harmed = fleet(attack, 0, bounded=False).mean()
        print(f"\n{attack.__name__}, unbounded: {harmed / alone - 1:+.2%}")
        assert harmed > alone * (1 + RISE)
        assert harmed > before > alone


@pytest.mark.slow
def test_it_is_so_for_other_seeds(fleet):
    found = [rises(fleet, seed) for seed in (1, 2, 3)]
    means = {attack.__name__: np.mean([one[attack.__name__] for one in found], axis=0) for attack in ATTACKS}
    assert {name: rise.max() for name, rise in means.items() if rise.max() > RISE} == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_copies_of_anothers_windows_cost_nobody_a_hundredth_where_the_batch_grows_with_the_fleet(fleet, seed):
    """Each honest device then has as many windows in a batch as without the tenth device."""
    rise = fleet(copied, seed, batch=GROWN) / fleet(None, seed) - 1
    print(f"\nseed {seed}: {rise.mean():+.2%}, {rise.max():+.2%} the worst device")
    assert rise.max() <= RISE
