"""What a device heard, from its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime_server.demo.heard import ResultFile, accuracy, heard
from runtime_server.labels.labelled import LabelledClip

PLAYLIST = {
    "00000-dog.wav": LabelledClip(Path("dog.wav"), ("dog_bark",)),
    "00001-cow.wav": LabelledClip(Path("cow.wav"), ("moo",)),
}
KNOWN = ("dog_bark", "rain")


def row(window: int, file: str, offset_s: float, **labels: float) -> dict[str, Any]:
    return {
        "window": window,
        "time": 100.0 + window / 2,
        "file": f"/audio/{file}",
        "offset_s": offset_s,
        "generation": 1 + window // 4,
        "labels": labels,
        "embedding": [0.5],
    }


def test_windows_of_one_playing_are_one_entry_whatever_order_they_came_in() -> None:
    rows = [
        row(1, "00000-dog.wav", 0.5, rain=0.6, dog_bark=0.4),
        row(0, "00000-dog.wav", 0.0, dog_bark=0.9, rain=0.1),
        row(4, "00000-dog.wav", 0.0, rain=0.8),
    ]
    first, again = heard("pi", rows, PLAYLIST, KNOWN)

    assert (first.label, first.score, first.windows, first.right) == ("dog_bark", 0.65, 2, True)
    assert (first.at, first.generation) == (100.0, 1)
    assert (again.label, again.right, again.generation) == ("rain", False, 2)
    assert "pi" in str(again)
    assert "wrong: dog_bark" in str(again)


def test_a_label_that_the_head_does_not_know_is_not_judged() -> None:
    (play,) = heard("pi", [row(0, "00001-cow.wav", 0.0, rain=0.9)], PLAYLIST, KNOWN)

    assert play.right is None
    assert accuracy([play]) == {"recordings": 0, "right": 0, "accuracy": None}


def test_a_later_answer_takes_the_place_of_the_one_before() -> None:
    first = row(0, "00000-dog.wav", 0.0, rain=0.9)
    later = {**row(0, "00000-dog.wav", 0.0, dog_bark=0.9), "revises": 1}
    for rows in ([first, later], [later, first]):
        (play,) = heard("pi", rows, PLAYLIST, KNOWN)
        assert play.label == "dog_bark"


def test_windows_before_the_head_came_are_left_out() -> None:
    without = row(0, "00000-dog.wav", 0.0)
    del without["labels"]

    assert heard("pi", [without], PLAYLIST, KNOWN) == []


def test_results_are_read_as_they_are_written(tmp_path) -> None:
    path = tmp_path / "pi.jsonl"
    results = ResultFile(path)
    assert results.read() == []
    line = json.dumps(row(0, "00000-dog.wav", 0.0, rain=0.9))
    path.write_text(line)
    assert results.read() == [], "half a line"
    path.write_text(f"{line}\n{line[:9]}")
    (read,) = results.read()
    assert "embedding" not in read
    path.write_text(f"{line}\n{line}\n")
    assert len(results.read()) == 2
