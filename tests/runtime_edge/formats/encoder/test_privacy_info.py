"""Which payloads a floor in words forbids."""

import pytest

from runtime_edge.errors import BundleError
from runtime_edge.formats.encoder.privacy_info import Leak, MeasuredShare, PrivacyInfo, forbidden_kinds

CUTS = ["waveform", "mid", "embedding"]
WIDTHS = {"mid": frozenset({8, 16})}


def leak(cut, rate, width=0, encoding="int8"):
    return Leak(
        cut=cut, encoding=encoding, width=width, words=MeasuredShare(rate=rate, low=rate - 0.05, high=rate + 0.05)
    )


AUDIT = PrivacyInfo(
    words=10,
    speakers=0,
    recordings=800,
    seeds=1,
    shipped=(
        leak("waveform", 0.9, encoding="pcm16"), leak("mid", 0.6), leak("mid", 0.4, 16), leak("mid", 0.2, 8),
        leak("embedding", 0.5),
    ),
)  # fmt: skip


def test_without_a_floor_nothing_is_forbidden():
    assert forbidden_kinds(None, None, CUTS, WIDTHS) == frozenset()


def test_the_upper_end_of_the_interval_counts():
    assert forbidden_kinds(AUDIT, 0.25, CUTS, WIDTHS) == {("waveform", 0), ("mid", 0), ("mid", 16), ("embedding", 0)}
    assert forbidden_kinds(AUDIT, 0.55, CUTS, WIDTHS) == {("waveform", 0), ("mid", 0)}
    assert forbidden_kinds(AUDIT, 1.0, CUTS, WIDTHS) == frozenset()


def test_what_was_not_audited_is_forbidden():
    assert ("mid", 32) in forbidden_kinds(AUDIT, 1.0, CUTS, {"mid": frozenset({8, 32})})
    assert forbidden_kinds(AUDIT, 1.0, CUTS, WIDTHS, "float16") == {("mid", 0), ("embedding", 0)}


def test_a_floor_that_nothing_keeps_is_refused_with_what_comes_nearest():
    with pytest.raises(BundleError, match=r"max_word_recognition 0.2: nothing .* the least, mid/8, .* 25 % of words"):
        forbidden_kinds(AUDIT, 0.2, CUTS, WIDTHS)


def test_a_bundle_without_an_audit_is_refused():
    with pytest.raises(BundleError, match=r"never audited; run `ssc audit`"):
        forbidden_kinds(None, 0.5, CUTS, WIDTHS)
