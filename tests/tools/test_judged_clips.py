"""Clips are judged by the mean scores of their windows, and ways of answering on the same clips."""

import numpy as np

from tools.judged_clips import interval, right_clips, split_clips

OWNERS, TRUTH = np.repeat(np.arange(3), 4), np.array([0, 1, 0])


def test_a_clip_is_right_by_the_mean_of_its_windows_and_wrong_without_any():
    scores = np.tile([0.6, 0.4], (12, 1))
    assert right_clips(scores, OWNERS, TRUTH).tolist() == [True, False, True]
    scores[4] = [0.0, 1.0]
    assert right_clips(scores, OWNERS, TRUTH).tolist() == [True, True, True]
    assert right_clips(scores[:8], OWNERS[:8], TRUTH).tolist() == [True, True, False]


def test_an_interval_holds_the_points_lost_and_is_nothing_where_nothing_differs():
    plain, found = np.arange(200) % 10 > 0, np.arange(200) % 5 > 0
    low, high = interval(plain, found)
    assert low < 100 * (plain.mean() - found.mean()) < high
    assert interval(plain, plain) == (0.0, 0.0)


def test_one_fold_of_both_sets_is_judged(tmp_path):
    for name in ("esc10", "speech_commands"):
        (tmp_path / name).mkdir()
        rows = [f"{fold}.wav,{fold},rain" for fold in (1, 4, 5)]
        (tmp_path / name / "labels.csv").write_text("\n".join(["filename,fold,class", *rows]) + "\n")
    judged, known = split_clips(tmp_path)
    assert [(clip.path.name, name) for clip, name in judged] == [("5.wav", "esc10"), ("5.wav", "speech_commands")]
    assert [clip.fold for clip in known] == [1, 4, 1, 4]
