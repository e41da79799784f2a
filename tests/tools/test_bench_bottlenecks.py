"""Nested widths against widths trained alone: bytes for the same cosine; the fewest bytes that lose little."""

import numpy as np
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


class ByFirstValue:
    """A head whose label is the first value of the mean embedding."""

    def predict(self, embeddings):
        return embeddings[:, 0].round().astype(np.int64)


def test_the_fewest_bytes_are_those_of_a_width_that_loses_at_most_a_point():
    labels = np.arange(200) % 2
    whole = np.stack([labels, 1.0 - labels], axis=-1)[:, None].astype(np.float32)
    wrong = whole.copy()
    wrong[:3] = 1 - wrong[:3]
    close = whole.copy()
    close[:2] = 1 - close[:2]
    one = Found("cut")
    one.add(ByFirstValue(), labels, whole, [(8, wrong, [60] * 200), (16, close, [110] * 200), (32, whole, [190] * 200)])
    made = one.section("toy", "a command")
    assert made.numbers == {"bytes_equal_accuracy.toy": 110.0}
    lost, said = one.of_width(8)
    assert lost == pytest.approx(1.5)
    assert said.startswith("cut/8: 60 bytes, median 60, 99 % within 60; median cosine 1.0000; accuracy 0.9850")
    assert one.whole == "whole encoder 1.0000 of 200 clips"
