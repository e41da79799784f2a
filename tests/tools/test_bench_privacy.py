"""What is published of an audit."""

from runtime_edge.formats.encoder.privacy_info import Leak, MeasuredShare, PrivacyInfo
from tools.bench_privacy import draw, filled
from tools.benchmarks import Section


def leak(cut, rate, encoding="int8", width=0, **others):
    return Leak(cut=cut, encoding=encoding, width=width, words=MeasuredShare(rate=rate, low=rate, high=rate), **others)


def test_every_leak_the_gap_and_the_agreement_are_numbers_with_their_goals():
    found = PrivacyInfo(
        words=10, speakers=20, recordings=800, seeds=2, members=MeasuredShare(rate=0.6, low=0.5, high=0.7),
        shipped=(leak("waveform", 0.9, "pcm16"), leak("mid.1", 0.5, width=8, image_error=0.4, intelligibility=0.5)),
        exits=(leak("mid.1", 0.3, "float32"),),
    )  # fmt: skip
    section = filled(Section("privacy", "", ""), found, direct=0.92, tau=0.7)
    assert section.numbers == {
        "attack_strength_gap": 2.0, "order_tau": 0.7, "members": 0.6,
        "words.waveform": 0.9, "words.mid.1/8": 0.5, "words.mid.1+exit": 0.3,
    }  # fmt: skip
    assert "order_tau" not in filled(Section("privacy", "", ""), found, direct=0.92, tau=None).numbers


def test_the_picture_has_a_bar_for_each_share(tmp_path):
    share = MeasuredShare(rate=0.4, low=0.3, high=0.5)
    found = PrivacyInfo(
        words=10, speakers=20, recordings=800, seeds=1, shipped=(leak("one", 0.9, speakers=share), leak("two", 0.5)),
        exits=(leak("two", 0.3, "float32"),),
    )  # fmt: skip
    draw(found, tmp_path / "privacy.svg")
    drawn = (tmp_path / "privacy.svg").read_text()
    draw(found, tmp_path / "again.svg")
    assert drawn == (tmp_path / "again.svg").read_text()
    assert all(f"<!-- {name} -->" in drawn for name in ("one", "two", "two+exit", "words", "speakers"))
