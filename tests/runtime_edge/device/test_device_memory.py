import numpy as np

from runtime_edge.device.device_memory import DeviceMemory


def embeddings(count, dim=8):
    made = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_a_late_answer_teaches_unless_the_device_has_finished_the_window_itself():
    memory, given = DeviceMemory(8), embeddings(61)
    assert memory.uncertainty is None
    for window in range(60):
        memory.teach(window, given[window])
    before = memory.mixture.to_bytes()
    memory.teach_late(59, given[59])
    assert memory.mixture.to_bytes() == before
    memory.teach_late(60, given[60])
    assert memory.mixture.to_bytes() != before


def test_a_window_is_judged_before_it_is_taught_and_what_is_like_the_others_is_not_new():
    memory, given = DeviceMemory(8), embeddings(70)
    assert memory.judge(given[0]) == (1.0, 1.0)
    for window in range(60):
        memory.teach(window, given[window % 3])
    before = memory.mixture.to_bytes()
    (known, known_novelty), (new, new_novelty) = memory.judge(given[0]), memory.judge(-given[:3].mean(axis=0))
    assert memory.mixture.to_bytes() == before
    assert known_novelty < 0.1 < new_novelty
    assert memory.uncertainty == new
    assert known == memory.mixture.uncertainty(given[0])


def test_what_was_taught_is_remembered_for_a_bounded_number_of_windows():
    memory, given = DeviceMemory(8), embeddings(2)
    for window in range(5000):
        memory.teach(window, given[0])
    before = memory.mixture.to_bytes()
    memory.teach_late(5000 - 1024, given[1])
    assert memory.mixture.to_bytes() == before
    memory.teach_late(5000 - 1025, given[1])
    assert memory.mixture.to_bytes() != before
    assert 0.0 <= memory.uncertainty <= 1.0
