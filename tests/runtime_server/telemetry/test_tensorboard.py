"""Event files: what cannot be written says so before anything is trained. What is written, test_server reads back."""

import sys

import pytest

from runtime_edge.errors import MissingExtra, UsageError
from runtime_server.telemetry.tensorboard import Board


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingExtra, match=r'pip install "streamsplit_audio-.*\[tensorboard\]"'):
        Board(tmp_path / "board")


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--tensorboard .*file"):
        Board(tmp_path / "file" / "board")
