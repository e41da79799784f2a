"""Mixtures learn late what they learn, and the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.formats.mixture import components_bytes
from runtime_edge.policy.memory import GaussianMemory
from runtime_server.training import mixtures
from runtime_server.training.mixtures import Mixtures

DIM = 12


@pytest.fixture
def embeddings():
    return np.random.default_rng(0).standard_normal((60, DIM)).astype(np.float32)


def expected(embeddings, at):
    memory = GaussianMemory(dim=DIM)
    memory.learn(embeddings[:at])
    return memory.to_bytes()


@pytest.mark.parametrize("every", [1, 5, 1000])
def test_what_is_due_holds_every_window_heard_whether_there_was_time_to_learn_or_not(embeddings, monkeypatch, every):
    monkeypatch.setattr(mixtures, "T_SYNC", 25)
    heard, replies = Mixtures(), []
    for number, embedding in enumerate(embeddings):
        replies.append(heard.add("pi-1", embedding))
        heard.add("pi-2", -embedding)
        if number % every == 0:
            heard.catch_up()
    assert [number for number, reply in enumerate(replies) if reply] == [24, 49]
    assert replies[24] == expected(embeddings, 25)
    assert replies[49] == expected(embeddings, 50)


def test_it_stops_learning_as_soon_as_something_is_urgent(embeddings, monkeypatch):
    heard, learnt = Mixtures(), []
    monkeypatch.setattr(GaussianMemory, "learn", lambda memory, embedding: learnt.append(embedding))
    for number in range(4):
        heard.add(f"pi-{number}", embeddings[number])
    heard.catch_up(lambda: len(learnt) == 2)
    assert len(learnt) == 2
    heard.catch_up()
    heard.catch_up()
    np.testing.assert_array_equal(learnt, embeddings[:4])


def test_no_device_waits_with_many_windows(embeddings, monkeypatch):
    learnt = []
    monkeypatch.setattr(GaussianMemory, "learn", lambda memory, embedding: learnt.append(embedding))
    heard = Mixtures()
    for embedding in embeddings:
        heard.add("pi-1", embedding)
    assert len(embeddings) - len(learnt) < mixtures.MAX_WAITING


def test_what_waits_is_its_own_and_forgotten_with_its_device(embeddings, monkeypatch):
    monkeypatch.setattr(mixtures, "T_SYNC", 2)
    heard, row = Mixtures(max_memories=2), embeddings[0].copy()
    heard.add("pi-1", row)
    row[:] = np.nan
    assert heard.add("pi-1", embeddings[1]) == expected(embeddings, 2)
    heard.add("pi-1", embeddings[2])
    heard.add("pi-2", embeddings[0])
    heard.add("pi-3", embeddings[0])
    heard.catch_up()
    assert not heard.add("pi-1", embeddings[3]), "it starts afresh"


def test_a_device_that_knows_how_is_told_of_what_has_moved_alone_and_of_that_once(monkeypatch):
    monkeypatch.setattr(mixtures, "T_SYNC", 25)
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((3, DIM))
    heard, device, server = Mixtures(), GaussianMemory(dim=DIM), GaussianMemory(dim=DIM)
    told = []
    for number in range(200):
        embedding = (centres[number % 3] + 0.05 * rng.standard_normal(DIM)).astype(np.float32)
        server.learn(embedding)
        data = heard.add("pi-1", embedding, "boot1", answered=number % 5 == 4)
        if data:
            told.append((number, len(data)))
            device.load(data)
    full = len(device.to_bytes())
    assert told[0][0] == 24
    assert max(size for _, size in told) <= mixtures.MOST_MOVED * full / 32
    assert sum(size for _, size in told) < full / 2, "of eight times, all together"
    heavy = server.weights > 0.1
    assert heavy.any()
    far = ((server.means[heavy] - device.means[heavy]) ** 2).sum(axis=1)
    assert far.max() < 2 * mixtures.MOVED * server.spread


def test_another_run_of_a_device_is_told_anew(monkeypatch):
    monkeypatch.setattr(mixtures, "T_SYNC", 10)
    heard, embedding = Mixtures(), np.eye(1, DIM, dtype=np.float32)[0]
    rng = np.random.default_rng(0)

    def play(boot):
        noisy = (embedding + 0.05 * rng.standard_normal((60, DIM))).astype(np.float32)
        return [bool(heard.add("pi-1", row, boot)) for row in noisy]

    assert not any(play("first"))
    assert any(play("second")), "it begins from nothing"


def test_a_device_is_told_nothing_that_its_own_windows_have_taught_it(monkeypatch):
    monkeypatch.setattr(mixtures, "T_SYNC", 10)
    rng = np.random.default_rng(2)
    heard = Mixtures()
    told = [heard.add("pi-1", row, "boot1", answered=True) for row in rng.standard_normal((60, DIM), np.float32)]
    assert not any(told)


def test_a_device_is_told_of_the_components_of_windows_that_it_never_had_the_embeddings_of(monkeypatch):
    monkeypatch.setattr(mixtures, "T_SYNC", 20)
    rng = np.random.default_rng(3)
    known, missed = np.eye(DIM, dtype=np.float32)[:2]
    heard, device, told = Mixtures(), GaussianMemory(dim=DIM), []
    for number in range(80):
        answered = number % 2 == 1
        row = ((known if answered else missed) + 0.02 * rng.standard_normal(DIM)).astype(np.float32)
        if answered:
            device.learn(row)
        data = heard.add("pi-1", row, "boot1", answered)
        if data:
            told.append(number)
            device.load(data)
    assert told, "or the device would not know of half of the sounds"
    assert {number % 2 for number in told} == {1}, "it is told where it is answered"
    far = ((device.means - missed) ** 2).sum(axis=1)
    assert far.min() < 0.05 * ((known - missed) ** 2).sum(), "though it has never had one of them"


@given(st.lists(st.booleans(), min_size=1, max_size=120), st.integers(0, 1000))
def test_whoever_is_answered_is_told_once_of_each_component_that_moved_without_it(answers, seed):
    heard, rng = Mixtures(), np.random.default_rng(seed)
    centres = rng.standard_normal((4, DIM)).astype(np.float32)
    spent = 0
    for answered in answers:
        row = centres[rng.integers(4)] + 0.05 * rng.standard_normal(DIM).astype(np.float32)
        data = heard.add("pi-1", row, "boot1", answered)
        assert answered or not data
        spent += len(data)
    assert not spent or not all(answers)
    # More cannot move than the windows that were missed.
    assert spent <= (len(answers) - sum(answers)) * components_bytes(mixtures.MOST_MOVED, DIM)


def test_a_server_that_is_always_behind_leaves_out_what_the_device_has_learnt_itself(embeddings, monkeypatch):
    learnt = []
    monkeypatch.setattr(GaussianMemory, "learn", lambda memory, embedding: learnt.append(embedding))
    heard = Mixtures()
    for number, embedding in enumerate(embeddings):
        heard.add("pi-1", embedding, "boot1", answered=number != 30)
    assert not learnt
    heard.catch_up()
    assert 0 < len(learnt) <= mixtures.MAX_WAITING
    assert any((embedding == embeddings[30]).all() for embedding in learnt), "nobody else has learnt it"
