"""Each parser on a few hundred damaged inputs; `python -m tools.fuzz` tries more."""

from __future__ import annotations

import importlib.util
import itertools

import pytest

from tools.fuzz import TARGETS, FuzzTarget, cases, fuzz

CASES = 300
SLOW = ("archive", "journal", "kept-tflite", "spool", "spool-log", "training")
"""A case takes a tenth of a second: fewer of them."""


@pytest.mark.integration
@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_gives_a_value_or_its_one_error(name: str) -> None:
    for needed, needing in (("ai_edge_litert", "tflite"), ("litert_torch", "kept-tflite")):
        if name == needing and importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    wanted = CASES // 10 if name in SLOW else CASES
    tried, read, broke = fuzz(TARGETS[name], 1, lambda tried: tried >= wanted)

    assert broke is None, f"broke on {broke!r:.200}"
    assert (tried, read < tried) == (wanted, True)


def test_what_breaks_a_parser_is_found() -> None:
    def parse(data: bytes) -> None:
        if len(data) > 4:
            raise KeyError(data)

    _, _, broke = fuzz(FuzzTarget(parse, ValueError, lambda: [b"good"]), 1, lambda tried: tried > 100)

    assert broke is not None


def test_what_python_would_only_print_is_found() -> None:
    class Failing:
        def __del__(self) -> None:
            raise KeyError

    def parse(data: bytes) -> None:
        Failing()

    with pytest.raises(AssertionError, match="callback failed: KeyError"):
        fuzz(FuzzTarget(parse, ValueError, lambda: [b"good"]), 1, lambda tried: tried > 100)


def test_the_same_seed_gives_the_same_cases() -> None:
    first, again, other = (list(itertools.islice(cases(TARGETS["wire"], seed), 20)) for seed in (1, 1, 2))
    assert first == again != other
