import itertools

import pytest
import torch

from runtime_edge.errors import FormatError
from streamsplit_compile.bottleneck.block import Layout
from streamsplit_compile.bottleneck.pca import fit_pca, with_step
from streamsplit_compile.bottleneck.training import Trainer, TrainingSet, widened

pytestmark = pytest.mark.integration

LAYOUT = Layout((1, 6, 4, 4), 1, (1, 1))
WIDTHS = [1, 2, 6]


@pytest.fixture(scope="module")
def task():
    """Activations whose loudest channels the suffix does not listen to: components by size keep the wrong ones."""
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(256, 6, 4, 4, generator=generator) * torch.tensor([9, 8, 7, 1, 1, 1.0]).view(1, -1, 1, 1)
    mixing = torch.randn(3 * 16, 8, generator=generator)

    def suffix(values):
        return torch.tanh(values[:, 3:].flatten(1) @ mixing)

    block = with_step(fit_pca(LAYOUT, [activations], 6)[0], 0.5)
    return block, TrainingSet(activations, suffix(activations), suffix)


def similarity(block, data, width):
    with torch.inference_mode():
        latents = widened(block.encode(data.activations).round()[:, :width], 6)
        found = data.suffix(block.decode(latents))
        return float(torch.nn.functional.cosine_similarity(found, data.embeddings).mean())


def test_training_keeps_what_the_suffix_listens_to_where_components_do_not(task, tmp_path):
    block, data = task

    trained = Trainer(block, data, WIDTHS, 400, 0).run(tmp_path / "kept.pt", lambda done, total: None)

    assert similarity(block, data, 2) < 0.2
    assert similarity(trained, data, 2) > similarity(block, data, 2) + 0.2
    assert similarity(trained, data, 6) > 0.8


def test_a_run_that_was_stopped_goes_on_where_it_was_and_ends_the_same(task, tmp_path):
    block, data = task
    whole = Trainer(block, data, WIDTHS, 150, 7).run(tmp_path / "whole.pt", lambda done, total: None)
    steps = itertools.count()

    def stop(done, total):
        if next(steps) == 120:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(block, data, WIDTHS, 150, 7).run(tmp_path / "kept.pt", stop)
    seen = []
    resumed = Trainer(block, data, WIDTHS, 150, 7).run(tmp_path / "kept.pt", lambda done, total: seen.append(done))

    assert seen[0] == 100
    assert resumed.to_bytes() == whole.to_bytes()


def test_a_damaged_checkpoint_is_named_with_what_to_do(task, tmp_path):
    (tmp_path / "kept.pt").write_bytes(b"nothing of the kind")

    with pytest.raises(FormatError, match=r"kept\.pt: not a checkpoint of this training; remove it to train anew"):
        Trainer(*task, WIDTHS, 10, 0).run(tmp_path / "kept.pt", lambda done, total: None)
