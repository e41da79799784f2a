"""Patches: what is made from old and new gives new again, small where little changed, and garbage is refused."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.errors import FormatError
from runtime_edge.formats.patch import apply_patch, make_patch


@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_any_two_files_round_trip(old: bytes, new: bytes) -> None:
    assert apply_patch(old, make_patch(old, new), len(new)) == new


def test_a_large_file_with_scattered_changes_makes_a_small_patch() -> None:
    rng = np.random.default_rng(0)
    old = rng.standard_normal(3_000_000).astype(np.float32)
    new = old.copy()
    new[rng.integers(0, new.size, 1000)] += 0.5

    patch = make_patch(old.tobytes(), new.tobytes())

    assert len(patch) < 0.01 * new.nbytes
    assert apply_patch(old.tobytes(), patch, new.nbytes) == new.tobytes()
    assert make_patch(old.tobytes(), new.tobytes()) == patch


def test_weights_that_all_moved_a_little_cost_about_half() -> None:
    rng = np.random.default_rng(0)
    old = (0.05 * rng.standard_normal(1_500_000)).astype(np.float32)
    new = old * (1 + 1e-4 * rng.standard_normal(old.size).astype(np.float32))
    # A header that puts the weights at an odd offset, as in a protobuf.
    before, after = b"graph" + old.tobytes(), b"graph" + new.tobytes()

    patch = make_patch(before, after)

    assert len(patch) < 0.55 * len(after)
    assert apply_patch(before, patch, len(after)) == after


@pytest.mark.parametrize("inserted", [1, 1000, 70_000])
def test_what_has_moved_is_found_where_it_was(inserted: int) -> None:
    """The weights stand elsewhere in the new file: their difference says nothing."""
    rng = np.random.default_rng(1)
    old = rng.bytes(6_000_000)
    new = rng.bytes(inserted) + old

    patch = make_patch(old, new)

    assert len(patch) < 0.05 * len(new)
    assert apply_patch(old, patch, len(new)) == new


def test_another_old_file_gives_other_bytes_or_is_refused() -> None:
    rng = np.random.default_rng(2)
    old, other = rng.bytes(100_000), rng.bytes(99_000)
    new = bytes(reversed(old))
    with contextlib.suppress(FormatError):
        assert apply_patch(other, make_patch(old, new), len(new)) != new


@given(st.binary(max_size=200))
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(FormatError):
        apply_patch(b"old", b"SSCP" + garbage, 10)


def test_truncations_and_a_wrong_size_are_refused() -> None:
    patch = make_patch(b"a" * 5000, b"a" * 4000 + b"b" * 1000)

    for length in range(len(patch)):
        with pytest.raises(FormatError):
            apply_patch(b"a" * 5000, patch[:length], 5000)
    with pytest.raises(FormatError):
        apply_patch(b"a" * 5000, patch, 4999)
    with pytest.raises(FormatError):
        apply_patch(b"a" * 5000, patch + b"x", 5000)
