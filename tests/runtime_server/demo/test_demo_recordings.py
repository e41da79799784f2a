"""Where the demo's recordings come from, and in which order devices hear them."""

from __future__ import annotations

import os

import numpy as np
import pytest
import soundfile

from runtime_edge.base.text import shown
from runtime_edge.errors import SourceError, UsageError
from runtime_server.demo.demo_recordings import find_recordings
from runtime_server.labels.labelled import read_clips

RATE = 16_000


@pytest.fixture
def directory(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(6):
        soundfile.write(folder / f"{number}.wav", np.zeros(RATE + number * RATE // 2), RATE)
    return folder


def found(directory, tmp_path):
    said: list[str] = []
    return find_recordings(directory, tmp_path / "cache", 4.0, 0, tmp_path, said.append), said


def test_a_directory_without_labels_is_played_whole(directory, tmp_path) -> None:
    recordings, _ = found(directory, tmp_path)

    assert recordings.what == "6 recordings from mine/, without labels (no labels.csv)"
    assert all(clip.labels == () for clip in recordings.clips)
    assert recordings.judges({"dog"}, tmp_path / "judges.csv") is None


def test_labels_are_read_and_of_several_folds_the_last_is_played(directory, tmp_path) -> None:
    (directory / "labels.csv").write_text("filename,class,fold\n0.wav,rain,1\n1.wav,yes,5\n2.wav,no,5\n")
    recordings, _ = found(directory, tmp_path)

    assert recordings.what == "2 labelled recordings from mine/, fold 5 of labels.csv"
    assert [(clip.path.name, clip.labels) for clip in recordings.clips] == [("1.wav", ("yes",)), ("2.wav", ("no",))]


def test_releases_are_judged_by_what_is_played_and_the_head_knows(directory, tmp_path) -> None:
    (directory / "labels.csv").write_text(
        "filename,class,fold\n0.wav,rain,1\n1.wav,rain,5\n2.wav,rain,5\n2.wav,wind,5\n3.wav,wind,5\n"
    )
    recordings, _ = found(directory, tmp_path)

    table = recordings.judges(("rain", "dog"), tmp_path / "judges.csv")
    assert [(clip.path, clip.labels) for clip in read_clips(table)] == [((directory / "1.wav").resolve(), ("rain",))]


def test_a_recording_whose_name_is_not_utf_8_is_found_by_what_devices_call_it(directory, tmp_path) -> None:
    (directory / "0.wav").rename(directory / os.fsdecode(b"caf\xe9.wav"))
    folder, playlist = found(directory, tmp_path)[0].playlist(tmp_path / "a", 0)

    assert {shown(path.name) for path in folder.iterdir()} == set(playlist)


def test_a_label_of_a_recording_that_is_not_there_is_refused_in_one_line(directory, tmp_path) -> None:
    (directory / "labels.csv").write_text("filename,class\n0.wav,rain\ngone.wav,yes\n")

    with pytest.raises(UsageError, match=r"labels\.csv: names 1 recordings that are not there, such as .*gone\.wav"):
        found(directory, tmp_path)


def test_a_directory_without_audio_is_refused(tmp_path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(SourceError, match="no audio file"):
        found(tmp_path / "empty", tmp_path)


def test_every_device_hears_all_of_them_in_an_order_of_its_own(directory, tmp_path) -> None:
    (directory / "labels.csv").write_text("filename,class\n" + "".join(f"{n}.wav,class{n}\n" for n in range(6)))
    recordings, _ = found(directory, tmp_path)
    orders = []
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        folder, playlist = recordings.playlist(tmp_path / name, seed)
        played = [path.resolve().name for path in sorted(folder.iterdir())]
        assert played == [playlist[path.name].path.name for path in sorted(folder.iterdir())]
        assert sorted(played) == [f"{n}.wav" for n in range(6)]
        orders.append(played)
    assert orders[0] == orders[2] != orders[1]


def test_how_many_windows_a_time_gives_follows_from_the_lengths(directory, tmp_path) -> None:
    recordings, _ = found(directory, tmp_path)

    assert sum(range(1, 7)) == 21, "of recordings of 1, 1.5, ... 3.5 s, one after the other"
    assert recordings.windows(13.5) == 21
    assert recordings.windows(27.0) == 42


def test_without_recordings_the_demo_says_that_it_synthesises(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt
    recordings, said = found(None, tmp_path)

    assert "synthesised" in recordings.what
    assert "there is no apt here" in said[0]
    assert "synthesised soundscape" in said[1]
    assert sum(soundfile.info(clip.path).duration for clip in recordings.clips) == pytest.approx(4.0)
