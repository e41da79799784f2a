"""A larger encoder that learns the classes of the reference encoder."""

import numpy as np
import pytest
import torch

from runtime_edge.formats.records.head import read_head, write_head
from runtime_server.labels.labelled import windows_of
from streamsplit_compile.encoder.encoders import load_encoder, save_checkpoint
from streamsplit_models.mn import mn
from tools.judged_clips import split_clips
from tools.train_larger import MAX_GAIN_DB, Recordings, batch_of, front_end_of, head_of, read_recordings, train

pytestmark = pytest.mark.integration

RATE, WINDOW = 16_000, 16_000


def tones(count=24):
    """Recordings of two kinds of tones, some longer than a window."""
    random = np.random.default_rng(0)
    samples = []
    for place in range(count):
        seconds = np.arange(WINDOW * (1 + 2 * (place % 4 == 0))) / RATE
        tone = np.sin(2 * np.pi * (300 if place % 2 else 2500) * (1 + 0.02 * place) * seconds)
        samples.append((0.2 * tone + 0.02 * random.standard_normal(len(seconds))).astype(np.float32))
    return Recordings(samples, [-one for one in samples], np.arange(count) % 2, ("high", "low"))


def test_a_batch_mixes_windows_by_power_and_classes_by_share():
    recordings = tones()
    windows, classes = batch_of(recordings, np.arange(24), RATE, WINDOW, np.random.default_rng(1))
    assert (windows.shape, classes.shape) == ((24, WINDOW), (24, 2))
    torch.testing.assert_close(classes.sum(1), torch.ones(24))
    assert (classes.max(1).values >= 0.5).all()
    power = windows.square().mean(1).numpy()
    given = 0.02 + 0.02**2
    assert (power > 0.2 * given * 10 ** (-MAX_GAIN_DB / 10)).all()
    assert (power < 2.5 * given * 10 ** (MAX_GAIN_DB / 10)).all()


def test_the_same_seed_gives_the_same_weights_and_another_one_others(capsys):
    recordings, trained = tones(), []
    for seed in (3, 3, 4):
        encoder = mn(width_mult=0.1)
        train(encoder, recordings, epochs=1, seed=seed, batch=12)
        trained.append(encoder.state_dict())
    first, again, other = trained
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    start = mn(width_mult=0.1).state_dict()
    changed = [name for name, value in first.items() if not torch.equal(value, other[name])]
    assert set(changed) == {name for name, value in first.items() if not torch.equal(value, start[name])} - {
        name for name in first if "num_batches" in name
    }
    assert "epoch 1 of 1: loss" in capsys.readouterr().out


def test_what_is_learnt_from_is_not_what_is_judged(two_words, tmp_path):
    (tmp_path / "speech_commands").symlink_to(two_words / "speech_commands")
    (tmp_path / "esc10").symlink_to(two_words / "speech_commands")
    found = read_recordings(tmp_path, RATE, WINDOW)
    assert (len(found.samples), found.names) == (2 * 64, ("go", "stop"))
    assert {len(one) for one in found.samples} == {WINDOW}
    for plain, coded in zip(found.samples[::16], found.coded[::16], strict=True):
        late = round(0.0065 * RATE)  # Opus's look-ahead
        assert np.corrcoef(plain[: 12_000 - late], coded[late:12_000])[0, 1] > 0.8


def test_the_head_is_for_the_embeddings_of_the_encoder_and_knows_the_classes(two_words, tmp_path):
    for name in ("speech_commands", "esc10"):
        (tmp_path / name).symlink_to(two_words / "speech_commands")
    save_checkpoint("mn", {"width_mult": 0.1}, mn(width_mult=0.1), tmp_path / "larger.pt")
    encoder = load_encoder(tmp_path / "larger.pt")
    heard = windows_of(split_clips(tmp_path)[1], front_end_of(encoder), 1)
    write_head(tmp_path / "larger.head.json", head_of(encoder, heard))
    found = read_head(tmp_path / "larger.head.json")
    assert (found.encoder, found.labels, found.scores_by) == (encoder.id, ("go", "stop"), "softmax")
    assert found.embedding_dim == encoder.graph.candidates[-1].shape[-1]
