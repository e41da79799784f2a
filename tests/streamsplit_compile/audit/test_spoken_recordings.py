"""Recordings of an audit: what is read, and who is judged."""

import csv

import numpy as np
import pytest
import soundfile
from speech import RATE, SAMPLES, WORDS, utterance, write_speech

from runtime_edge.errors import FormatError, UsageError
from streamsplit_compile.audit.spoken_recordings import read_spoken


def labelled(place, rows):
    with (place / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return place


def test_words_are_folders_and_speakers_begin_the_names(spoken):
    assert spoken.vocabulary == tuple(sorted(WORDS))
    assert spoken.windows.shape == (60, SAMPLES)
    assert np.bincount(spoken.words).tolist() == [30, 30]
    assert np.bincount(spoken.speakers).tolist() == [6] * 10


def test_nobody_is_heard_on_both_sides(spoken):
    judged, heard = set(spoken.speakers[spoken.test]), set(spoken.speakers[~spoken.test])
    assert judged
    assert heard
    assert judged & heard == set()


def test_labels_say_which_fold_is_judged(tmp_path):
    place = write_speech(tmp_path / "speech", takes=1)
    rows = [[f"{word}/s{s:02d}-0.wav", word, f"s{s:02d}", 1 + s // 8] for word in WORDS for s in range(10)]
    found = read_spoken(labelled(place, [["filename", "class", "speaker", "fold"], *rows]), RATE, SAMPLES)
    assert set(found.speakers[found.test]) == {8, 9}


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        ([["filename", "class", "fold"]], FormatError, "labels.csv: line 1: no column speaker"),
        (
            [["filename", "class", "speaker", "fold"], ["down/s00-0.wav", "down", "s00", "one"]],
            FormatError,
            "labels.csv: line 2",
        ),
        (
            [
                ["filename", "class", "speaker", "fold"],
                *([f"{w}/s{s:02d}-0.wav", w, f"s{s:02d}", 1 + (w == "up")] for w in WORDS for s in range(10)),
            ],
            UsageError,
            "a speaker must be in one fold",
        ),
    ],
)
def test_wrong_labels_are_refused_by_line_and_field(tmp_path, rows, error, words):
    place = labelled(write_speech(tmp_path / "speech", takes=1), rows)
    with pytest.raises(error, match=words):
        read_spoken(place, RATE, SAMPLES)


def test_too_few_speakers_are_refused_with_what_is_needed(tmp_path):
    place = write_speech(tmp_path / "speech", speakers=3)
    with pytest.raises(UsageError, match=r"2 words by 3 speakers.*at least 2 words and 8 speakers"):
        read_spoken(place, RATE, SAMPLES)


def test_the_loudest_stretch_is_taken_and_a_short_one_is_padded(tmp_path):
    place = write_speech(tmp_path / "speech", takes=1)
    quiet = np.zeros(2 * SAMPLES, np.float32)
    quiet[SAMPLES // 2 : SAMPLES // 2 + SAMPLES] = utterance("up", 3, 0)
    soundfile.write(place / "up" / "s03-0.wav", quiet, RATE)
    soundfile.write(place / "up" / "s04-0.wav", utterance("up", 4, 0, SAMPLES // 2), RATE)
    found = read_spoken(place, RATE, SAMPLES)
    long, short = (found.windows[(found.words == 1) & (found.speakers == s)][0] for s in (3, 4))
    assert np.abs(long - utterance("up", 3, 0)).max() < 1e-3
    assert not short[: SAMPLES // 4].any()
    assert short[SAMPLES // 2].any()


def test_at_most_so_many_are_read(tmp_path):
    assert len(read_spoken(write_speech(tmp_path / "speech"), RATE, SAMPLES, most=40).windows) == 40
