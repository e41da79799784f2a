"""Ten devices train one encoder, and one of them is hostile: what its windows do to the others'.

Honest devices hear soundscapes of their own. The held-out loss of each is measured after the same training with and
without the hostile one, on the same windows and views, at the server's default settings. The numbers are printed
(`pytest -s`).
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


@pytest.fixture(autouse=True)
def one_thread():
    """As the server trains: two wait for each other more than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fleet(generations, heard):
    """`fleet(attack, seed, steps, bounded, ...)`: held-out loss of each honest device; no attack, no tenth device.

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
    own = [window.activation for window in windows(len(HONEST))]

    def run(attack, seed, steps=STEPS, bounded=True, **config):
        settings = TrainConfig(seed=seed, **config)
        trainer = Trainer(first_model(generations.graph, generation), settings, 6, key=b"key")
        judge = Trainer(first_model(generations.graph, generation), TrainConfig(batch=144), 6, key=b"key")
        for window in honest:
            trainer.add(window)
            judge.add(window)
        for index in range(WINDOWS if attack else 0):
            activation = attack(index, own, [window.activation for window in honest[:WINDOWS]], generation)
            in_range = not bounded or generation.in_range(CUT, activation[None]) == [True]
            trainer.add(TrainingWindow("zz", "boot", index, 1, CUT, activation, in_range=in_range))
        for _ in range(steps):
            trainer.step()
        averaged = cut_model(generations.graph, generation.bundle, trainer.averaged_tensors())
        (judged,) = judge.judge([averaged])
        return np.array([judgement.loss for judgement in judged])

    return run


def constant(index, own, other, generation):
    return torch.full_like(own[index], 1e4)


def constant_within_range(index, own, other, generation):
    value = 1e4
    while generation.in_range(CUT, torch.tensor([[value]])) == [False]:
        value *= 0.9
    return torch.full_like(own[index], value)


def scaled(index, own, other, generation):
    return 1000 * own[index]


def scaled_within_range(index, own, other, generation):
    return 3 * own[index]


def copied(index, own, other, generation):
    return other[index]


def shuffled(index, own, other, generation):
    """Flipped labels: numbers that are near say that two windows are alike, and here no neighbours are."""
    return own[37 * index % WINDOWS]


ATTACKS = (constant, constant_within_range, scaled, scaled_within_range, copied, shuffled)


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


def test_without_the_range_the_same_windows_do_as_much_harm_as_training_does_good(fleet):
    longer = {"learning_rate": 3e-4, "ema": 0.95}
    before, alone = fleet(None, 0, steps=0).mean(), fleet(None, 0, **longer).mean()
    harmed = {attack: fleet(attack, 0, bounded=False, **longer).mean() for attack in (constant, scaled)}
    for attack, loss in harmed.items():
        print(f"\n{attack.__name__}, unbounded: {loss / alone - 1:+.2%}")
        assert loss > alone * (1 + RISE)
    assert max(harmed.values()) > before > alone


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_is_so_for_other_seeds(fleet, seed):
    found = rises(fleet, seed)
    assert {name: rise.max() for name, rise in found.items() if rise.max() > RISE} == {}
