import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tools.arm.debian import DebianCache, Unavailable


@pytest.fixture
def cache(tmp_path):
    try:
        return DebianCache(tmp_path / "cache")
    except Unavailable as exc:
        pytest.skip(str(exc))


def test_of_several_at_once_one_fills_the_cache_and_the_others_wait_for_it(cache):
    """Each takes the lock with a descriptor of its own, as a process does."""
    all_here, two_fill, filled = threading.Barrier(4), threading.Barrier(2), []

    def fill(directory):
        directory.mkdir()
        with contextlib.suppress(threading.BrokenBarrierError):
            two_fill.wait(0.2)
        (directory / "file").write_text("fetched")
        filled.append(directory)

    def wanted(_):
        all_here.wait(30)
        return (cache.cached("root", ("one",), fill) / "file").read_text()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(wanted, range(4))) == ["fetched"] * 4
    assert len(filled) == 1
    assert [path.name[:5] for path in cache.directory.iterdir()] == ["root-"]


def test_what_was_made_from_other_inputs_is_made_again(cache):
    made = [cache.cached("root", (inputs,), lambda directory: directory.mkdir()) for inputs in ("one", "two")]
    assert made[0] != made[1]
    assert list(cache.directory.iterdir()) == [made[1]]


def test_a_failed_fill_leaves_nothing_and_the_next_one_can_try(cache):
    def fails(directory):
        directory.mkdir()
        raise Unavailable("no network")

    with pytest.raises(Unavailable):
        cache.cached("root", ("one",), fails)
    assert list(cache.directory.iterdir()) == []
    assert cache.cached("root", ("one",), lambda directory: directory.mkdir()).is_dir()
