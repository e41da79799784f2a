"""The last few of something, looked at while it grows."""

import threading

from runtime_edge.base.recent import Recent


def test_the_last_ones_are_kept_in_order():
    recent = Recent(3)
    assert recent.all() == []
    for number in range(5):
        recent.append(number)
    looked = recent.all()
    recent.append(5)
    assert looked == [2, 3, 4]
    assert recent.all() == [3, 4, 5]


def test_one_thread_may_append_while_another_iterates():
    recent, done = Recent(500), threading.Event()

    def append():
        for number in range(100_000):
            recent.append(number)
        done.set()

    thread = threading.Thread(target=append)
    thread.start()
    while not done.is_set():
        before = -1
        for number in recent.all():
            assert number > before
            before = number
    thread.join()
    assert recent.all() == list(range(99_500, 100_000))
