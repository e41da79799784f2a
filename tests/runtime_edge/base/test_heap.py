from runtime_edge.base import heap


def test_nothing_is_given_back_while_memory_is_kept(monkeypatch):
    trims = []
    monkeypatch.setattr(heap, "malloc_trim", lambda: trims.append)
    with heap.memory_kept(), heap.memory_kept():
        heap.give_memory_back()
    assert not trims
    heap.give_memory_back()
    assert trims == [0]
