"""Nested widths against widths trained alone: bytes for the same cosine."""

import pytest

from tools.bench_bottlenecks import Found, nested_share


def found(*widths):
    """(width, bytes, cosine) each."""
    one = Found("cut")
    for width, size, cosine in widths:
        one.sizes[width], one.cosines[width] = [size], [cosine]
    return one


@pytest.mark.parametrize(
    ("size", "cosine", "share"),
    [
        (100.0, 0.9, 1.0),
        (80.0, 0.9, 1.25),
        (200.0, 0.99, 2.0),
        (200.0, 1 - 10**-1.5, 1.0),  # halfway between two widths: 200 bytes
        (800.0, 0.999, 2.0),  # beyond the widest, along the same line: 1600 bytes
    ],
)
def test_the_share_is_of_bytes_for_the_same_cosine(size, cosine, share):
    nested = found((8, 100.0, 0.9), (16, 400.0, 0.99))
    assert nested_share(nested, found((8, size, cosine)), 8) == pytest.approx(share)
