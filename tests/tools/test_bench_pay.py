"""The bench of bytes and first answers: clips by mean scores, components of channels, the fewest bytes."""

import numpy as np
import pytest

from tools.bench_pay import Clips, Judge, Way, components, least, section


class Two:
    """A head of two labels: which half of an embedding is larger."""

    def scores(self, embeddings):
        return np.stack([embeddings[:, 0], embeddings[:, 1]], axis=1)


def test_a_clip_is_judged_by_its_windows_and_wrong_without_any():
    clips = Clips(np.zeros((4, 8), np.float32), np.array([0, 0, 1, 1]), np.array([0, 1, 0]))
    whole = np.array([[1, 0], [0.9, 0.1], [0, 1], [0, 1]], np.float32)
    judge = Judge(clips, Two(), whole)
    found = whole.copy()
    found[2:] = [[1, 0], [0.5, 0.6]]
    assert clips.right(Two(), whole).tolist() == [True, True, False]
    way = judge.way("cut/8", found, [10, 20, 30, 40])
    assert way.lost == pytest.approx(100 / 3)
    assert (way.payload, way.low <= way.lost <= way.high) == (25.0, True)


def test_all_components_in_fine_steps_are_the_activation_and_fewer_take_fewer_bytes():
    random = np.random.default_rng(0)
    mixing = random.normal(size=(8, 8)) * np.geomspace(1, 0.01, 8)
    seen, heard = (np.einsum("nrhw,rc->nchw", random.normal(size=(n, 8, 5, 6)), mixing.T) for n in (64, 3))
    whole = list(components(seen.astype(np.float32), 8, 8, heard.astype(np.float32)))
    few = list(components(seen.astype(np.float32), 2, 4, heard.astype(np.float32)))
    spread = heard.std()
    assert max(np.abs(found - one).max() for (found, _), one in zip(whole, heard, strict=True)) < 0.5 * spread
    errors = [
        np.mean([((found - one) ** 2).mean() for (found, _), one in zip(way, heard, strict=True)])
        for way in (whole, few)
    ]
    assert errors[0] < errors[1] < spread**2
    assert max(size for _, size in few) < min(size for _, size in whole)


def test_the_fewest_bytes_within_a_point_are_published_with_what_components_take(calibrated_bundle):
    manifest = calibrated_bundle.manifest
    cut = manifest.info.bottlenecks[0].cut
    ways = [Way(f"{cut}/8", 3.0, 2.0, 4.0, 0.8, 50.0, 60.0), Way(f"{cut}/16", 0.9, 0.0, 2.0, 0.9, 100.0, 120.0)]
    ways += [Way(f"{cut}/32", 0.1, 0.0, 1.0, 0.95, 200.0, 220.0), Way(f"{cut}+exit", 2.5, 1.0, 4.0, 0.9)]
    beside = [
        Way(f"{cut}, 8 components", 0.5, 0.0, 1.0, 0.9, 190.0, 200.0),
        Way("fewer", 5.0, 4.0, 6.0, 0.7, 20.0, 30.0),
    ]
    assert least(ways[:3]).name == f"{cut}/16"
    assert least(ways[:1]) is None
    found = section("toy", manifest, ways, beside, 40)
    assert found.numbers["bytes_equal_accuracy.toy"] == 100.0
    assert found.numbers["bytes_against_components.toy"] == 1.9
    assert found.numbers["exit_points_lost.toy"] == 2.5
