import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from runtime_edge.base.files import (
    fsync_directory,
    is_locked,
    locked,
    make_private,
    read_bounded,
    read_text,
    write_atomic,
)
from runtime_edge.errors import BundleError, FormatError, UsageError

STATUS = Path("/proc/self/status")


def test_a_file_of_exactly_the_limit_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bounded(tmp_path / "file", 5) == b"12345"


def test_a_larger_file_is_refused_without_reading_it(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading it would take for ever
    with pytest.raises(BundleError, match=r"file: 1099511627776 bytes, more than the 5 allowed"):
        read_bounded(tmp_path / "file", 5, BundleError)


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc on this system")
def test_a_file_that_grows_while_it_is_read_is_refused():
    # Files of /proc have size 0 and content.
    with pytest.raises(FormatError, match="grew beyond the 3 bytes"):
        read_bounded(STATUS, 3)


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "below a file", "dangling link", "link loop"])
def test_what_is_no_regular_file_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "thing"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "below a file":
        path.write_bytes(b"")
        path = path / "below"
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "link loop":
        path.symlink_to(path)
    with pytest.raises(BundleError, match=f"^{path}: "):
        read_bounded(path, 10, BundleError)


def test_a_name_no_file_can_have_is_refused(tmp_path):
    with pytest.raises(FormatError, match="cannot be read"):
        read_bounded(tmp_path / ("x" * 300), 10)


def test_writing_makes_directories_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_secret_is_never_readable_by_others(tmp_path):
    write_atomic(tmp_path / "key", b"secret", mode=0o600)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "text")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_directory_is_made_durable(tmp_path):
    fsync_directory(tmp_path)
    with pytest.raises(FileNotFoundError):
        fsync_directory(tmp_path / "missing")


@pytest.mark.integration
def test_a_lock_is_held_by_one_and_goes_with_its_process(tmp_path):
    path = tmp_path / "lock"
    assert not is_locked(path)
    script = (
        "import sys, pathlib\nfrom runtime_edge.base.files import locked\n"
        f"with locked(pathlib.Path({str(path)!r}), 'busy'):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        assert is_locked(path)
        with pytest.raises(UsageError, match="busy"), locked(path, "busy"):
            pass
    finally:
        other.kill()
        other.communicate()
    assert not is_locked(path)
    with locked(path, "busy"):
        assert is_locked(path)


def test_a_file_nobody_waits_for_is_whole_all_the_same(tmp_path):
    path = tmp_path / "status"
    write_atomic(path, b"one")
    write_atomic(path, b"two", durable=False)
    assert path.read_bytes() == b"two"
    assert [file.name for file in tmp_path.iterdir()] == ["status"]


def test_a_state_directory_is_made_for_its_owner_alone_and_keeps_what_its_owner_gave_it(tmp_path):
    make_private(tmp_path / "var" / "ssc-edge")
    assert stat.S_IMODE((tmp_path / "var" / "ssc-edge").stat().st_mode) == 0o700
    (tmp_path / "var" / "ssc-edge").chmod(0o750)
    make_private(tmp_path / "var" / "ssc-edge")
    assert stat.S_IMODE((tmp_path / "var" / "ssc-edge").stat().st_mode) == 0o750


def test_what_is_no_file_is_written_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomic(pipe, b"report")
        assert os.read(reader, 100) == b"report"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_a_disk_that_is_full_is_told_with_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/report\.json'"):
        write_atomic(tmp_path / "report.json", b"{}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        ("name\nKäfer\n".encode("latin-1"), "line 2 is not UTF-8 text; save it as UTF-8"),
        ("Käfer".encode("utf-16"), "perhaps UTF-16; save it as UTF-8"),
        ("Käfer".encode("utf-16-be"), "perhaps UTF-16; save it as UTF-8"),
    ],
)
def test_text_in_another_encoding_is_told_with_its_line(tmp_path, data, wrong):
    (tmp_path / "text.csv").write_bytes(data)
    with pytest.raises(BundleError, match=rf"text\.csv: .*{wrong}"):
        read_text(tmp_path / "text.csv", 100, BundleError)


def test_the_mark_that_no_editor_shows_is_not_part_of_a_text(tmp_path):
    (tmp_path / "text.csv").write_bytes(b"\xef\xbb\xbffile,label\r\n")
    assert read_text(tmp_path / "text.csv", 100) == "file,label\r\n"
