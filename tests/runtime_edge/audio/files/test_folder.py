"""Which files of a folder are recordings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime_edge.audio.files.folder import audio_files, is_hidden
from runtime_edge.errors import SourceError


def make(directory: Path, *names: str) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names_in(directory: Path) -> list[str]:
    return [path.relative_to(directory).as_posix() for path in audio_files(directory)]


def test_every_format_that_is_read_alone_is_found_in_any_case_at_any_depth_in_order(tmp_path: Path) -> None:
    found = [
        "a.wav",
        "b/10.WAV",
        "b/2.flac",
        "c/d/x.ogg",
        "e.mp3",
        "f.opus",
        "g.aiff",
        "h.aif",
        "i.au",
        "j.caf",
        "k.w64",
    ]
    make(tmp_path, *found, "notes.txt", "b/cover.jpg", "wav")

    assert names_in(tmp_path) == found


def test_recordings_that_cannot_be_read_are_found_so_that_their_loss_is_told(tmp_path: Path) -> None:
    make(tmp_path, "a.wav", "phone.m4a", "old.wma")

    assert names_in(tmp_path) == ["a.wav", "old.wma", "phone.m4a"]


def test_what_its_owner_has_hidden_is_left_out(tmp_path: Path) -> None:
    make(
        tmp_path, "a.wav", ".a.wav", "._a.wav", "~a.wav", ".Trash-1000/files/b.wav", ".stversions/c/d.wav",
        "$RECYCLE.BIN/e.wav", "System Volume Information/f.wav", "lost+found/g.wav", "@eaDir/h.wav", "__MACOSX/i.wav",
        "j.part.wav", "k.tmp.WAV", "l.wav.part", "m.wav.crdownload", "n.wav.download/n.wav",
        "LOST.DIR/o.wav", "@Recycle/p.wav", "files_trashbin/q.wav", "Network Trash Folder/r.wav", "s.wav~",
        "t.wav.filepart",
    )  # fmt: skip

    assert names_in(tmp_path) == ["a.wav"]


@pytest.mark.parametrize("name", ["2.part", "a.b.wav", "part.wav", "download", "Trash talk.wav", "a~.wav", "$5.wav"])
def test_what_only_looks_alike_is_not_hidden(name: str) -> None:
    assert is_hidden(name) == (name == "2.part")


def test_a_folder_below_a_hidden_one_may_be_named_itself(tmp_path: Path) -> None:
    make(tmp_path, ".cache/recordings/a.wav")

    assert names_in(tmp_path / ".cache" / "recordings") == ["a.wav"]


def test_links_are_read_and_loops_of_them_are_not_followed(tmp_path: Path) -> None:
    make(tmp_path, "a/x.wav")
    (tmp_path / "a" / "y.wav").symlink_to(tmp_path / "a" / "x.wav")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "gone.wav").symlink_to(tmp_path / "nowhere")

    assert names_in(tmp_path) == ["a/gone.wav", "a/x.wav", "a/y.wav"], "one that leads nowhere is told by who reads it"


def test_names_that_are_not_utf_8_are_found(tmp_path: Path) -> None:
    make(tmp_path, os.fsdecode(b"M\xfcnchen.wav"))

    assert [os.fsencode(path.name) for path in audio_files(tmp_path)] == [b"M\xfcnchen.wav"]


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "notes.txt", ".a.wav")

    with pytest.raises(SourceError, match="no audio file in this directory"):
        audio_files(tmp_path)
