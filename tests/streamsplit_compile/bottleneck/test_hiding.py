"""Training against an adversary: what others, that learn afresh, still recognise in what is shipped."""

import itertools

import numpy as np
import pytest
import torch

from streamsplit_compile.bottleneck.block import Layout
from streamsplit_compile.bottleneck.hiding import Adversary, LabelledActivations
from streamsplit_compile.bottleneck.pca import fit_pca, with_step
from streamsplit_compile.bottleneck.training import Trainer, TrainingSet

pytestmark = pytest.mark.integration

LAYOUT = Layout((1, 6), 1, (1, 1))


@pytest.fixture(scope="module")
def labelled():
    """Activations whose second channel tells the label, and is loud in everything."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(512) % 4
    activations = torch.randn(512, 6, generator=generator)
    activations[:, 1] += 3.0 * labels
    return LabelledActivations(activations, {"words": labels})


@pytest.fixture(scope="module")
def task():
    """The suffix listens to the first channel, and to the second a little."""
    activations = torch.randn(512, 6, generator=torch.Generator().manual_seed(0))
    activations *= torch.tensor([3.0, 4.0, 0.5, 0.5, 0.5, 0.5])
    weights = torch.tensor([1.0, 0.05, 0.0, 0.0, 0.0, 0.0])

    def suffix(values):
        return torch.stack([(values * weights).sum(1), torch.ones(len(values))], 1)

    return with_step(fit_pca(LAYOUT, [activations], 2)[0], 3.0), activations, suffix


def recognised(block, labelled, width):
    """Share of the labels that the nearest mean of half of the latents says of the others."""
    with torch.inference_mode():
        latents = block.encode(labelled.activations)[:, :width, 0, 0].round().numpy()
    labels = labelled.labels["words"].numpy()
    means = np.stack([latents[:256][labels[:256] == label].mean(0) for label in range(4)])
    apart = np.square(latents[256:, None] - means).sum(2)
    return float((apart.argmin(1) == labels[256:]).mean())


def trained(task, hidden, steps=700):
    block, activations, suffix = task
    data = TrainingSet(activations, suffix(activations), suffix, hidden)
    return Trainer(block, data, [1, 2], steps, 0).run(None, lambda done, total: None)


def test_what_is_hidden_is_recognised_less_and_the_embedding_stays(task, labelled):
    plain, hiding = trained(task, None), trained(task, labelled)

    assert recognised(plain, labelled, 2) > 0.5
    assert recognised(hiding, labelled, 2) < 0.35
    _, activations, suffix = task
    with torch.inference_mode():
        found = suffix(hiding.decode(hiding.encode(activations).round()))
        assert torch.nn.functional.cosine_similarity(found, suffix(activations)).mean() > 0.9


def test_a_stopped_run_goes_on_with_its_adversary_and_ends_the_same(task, labelled, tmp_path):
    block, activations, suffix = task
    data = TrainingSet(activations, suffix(activations), suffix, labelled)
    whole = Trainer(block, data, [1, 2], 120, 3).run(None, lambda done, total: None)
    steps = itertools.count()

    def stop(done, total):
        if next(steps) == 110:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(block, data, [1, 2], 120, 3).run(tmp_path / "kept.pt", stop)
    resumed = Trainer(block, data, [1, 2], 120, 3).run(tmp_path / "kept.pt", lambda done, total: None)

    assert resumed.to_bytes() == whole.to_bytes()


def test_an_adversary_knows_what_it_has_learnt_and_nothing_of_a_silent_latent(labelled):
    adversary = Adversary(labelled, [2], (1, 1), torch.Generator().manual_seed(0))
    random = np.random.default_rng(0)

    def shipped(activations):
        return activations[:, :2, None, None].round()

    before = adversary.knowledge(shipped(adversary.batch(random)[0])).item()
    for _ in range(100):
        activations, labels = adversary.batch(random)
        adversary.learn(shipped(activations), labels)

    assert adversary.knowledge(shipped(activations)).item() > before + 0.5
    again = Adversary(labelled, [2], (1, 1), torch.Generator().manual_seed(1))
    again.load(adversary.state())
    assert torch.equal(again.knowledge(shipped(activations)), adversary.knowledge(shipped(activations)))
