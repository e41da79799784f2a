"""What hiding costs: the closed form that erases words, noise, and what is said of an arm."""

import numpy as np
import pytest
import torch

from streamsplit_compile.bottleneck.block import Layout
from streamsplit_compile.bottleneck.hiding import LabelledActivations
from streamsplit_compile.bottleneck.pca import fit_pca, with_step
from tools.bench_hiding import Arm, Found, erased, shipped, told


@pytest.fixture(scope="module")
def spoken():
    """Words told by two of eight directions."""
    labels = np.arange(400) % 3
    rows = np.random.default_rng(0).normal(size=(400, 8)) * np.arange(1, 9)
    rows[:, 2:4] += 4.0 * np.eye(3)[labels][:, :2]
    return LabelledActivations(torch.from_numpy(rows).float(), {"words": torch.from_numpy(labels)})


@pytest.fixture
def block(spoken):
    return with_step(fit_pca(Layout((1, 8), 1, (1, 1)), [spoken.activations], 8)[0], 0.01)


def means(block, spoken):
    latents = block.encode(spoken.activations).detach()[:, :, 0, 0]
    return torch.stack([latents[spoken.labels["words"] == word].mean(0) for word in range(3)])


def test_once_words_are_erased_their_means_are_the_same(block, spoken):
    apart = means(block, spoken)
    same = means(erased(block, spoken), spoken)

    assert (apart - apart.mean(0)).abs().max() > 100
    assert (same - same.mean(0)).abs().max() < 1
    assert torch.allclose(same.mean(0), apart.mean(0), atol=5), "the mean of all stays"


def test_noise_is_in_steps_and_follows_the_seed(block, spoken):
    plain, noisy = (shipped(block, spoken.activations / 100, 4, Arm("x", noise=noise), 0) for noise in (0.0, 3.0))

    assert plain.shape == (400, 4, 1, 1)
    assert (noisy - plain).std() == pytest.approx(3.0, rel=0.1)
    assert torch.equal(noisy, shipped(block, spoken.activations / 100, 4, Arm("x", noise=3.0), 0))


def test_an_arm_says_what_is_recognised_and_what_is_lost():
    flags = np.array([True] * 15 + [False] * 85)
    found = Found([np.array([True, True, False, False])], [np.array([True] * 3 + [False])], [flags, flags], [])

    assert found.lost == pytest.approx(25.0)
    said = told(Arm("hide words"), 8, found)
    assert said.startswith("hide words, width 8: words 0.150 (")
    assert said.endswith("2 attacked); points lost 25.00 of 4 clips")
