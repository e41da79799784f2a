"""Files with a checksum beside them: what has changed is noticed, whatever moment the process died at."""

import logging
import os
import shutil

import pytest
from damaged_bytes import flip

from runtime_edge.base.checked_files import check, checksum_path, read_checked, remove_checked, replacing, write_checked
from runtime_edge.errors import FormatError

LIMIT = 1 << 20


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "rollout.json"


def test_what_was_written_is_read_and_what_never_was_is_none(path):
    assert read_checked(path, LIMIT) is None
    assert not check(path)
    for data in (b"one", b"two", b""):
        write_checked(path, data, 0o600)
        assert read_checked(path, LIMIT) == data
        assert check(path)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.integration
def test_any_flipped_bit_is_noticed_and_one_of_the_checksum_costs_nothing(path, caplog):
    write_checked(path, b"some state")
    write_checked(path, b"more state")
    for bit in range(8 * len(b"more state")):
        flip(path, bit)
        with pytest.raises(FormatError, match=r"rollout\.json: is damaged: .*; put back a copy.* and begin again"):
            read_checked(path, LIMIT, fix=" and begin again")
        flip(path, bit)
    checksum = checksum_path(path).read_bytes()
    for bit in range(8 * len(checksum)):
        checksum_path(path).write_bytes(checksum)
        flip(checksum_path(path), bit)
        caplog.clear()
        assert read_checked(path, LIMIT) == b"more state"
        assert "rollout.json.sha256: damaged" in caplog.text
    flip(path, 3)
    with pytest.raises(FormatError):
        read_checked(path, LIMIT)


def killed_while_writing(path, digest):
    with pytest.raises(KeyboardInterrupt), replacing(path, digest):
        raise KeyboardInterrupt


def test_a_process_may_die_between_any_two_steps(path):
    path.parent.mkdir()
    killed_while_writing(path, "2" * 64)
    assert read_checked(path, LIMIT) is None
    write_checked(path, b"before")
    killed_while_writing(path, "0" * 64)
    assert read_checked(path, LIMIT) == b"before"
    killed_while_writing(path, "1" * 64)
    assert read_checked(path, LIMIT) == b"before"
    write_checked(path, b"after")
    assert read_checked(path, LIMIT) == b"after"


def test_a_file_that_is_gone_is_missed_unless_it_was_removed(path):
    write_checked(path, b"here")
    path.unlink()
    with pytest.raises(FormatError, match=r"rollout\.json: is missing"):
        read_checked(path, LIMIT)
    with pytest.raises(FormatError, match=r"rollout\.json: is missing"):
        check(path)
    remove_checked(path)
    assert read_checked(path, LIMIT) is None


def test_a_file_of_an_earlier_version_is_covered_once_it_has_been_read(path, caplog):
    path.parent.mkdir()
    path.write_bytes(b"earlier")
    assert read_checked(path, LIMIT) == b"earlier"
    flip(path, 0)
    with pytest.raises(FormatError, match="is damaged"):
        read_checked(path, LIMIT)
    assert not caplog.text
    assert sorted(os.listdir(path.parent)) == ["rollout.json", "rollout.json.sha256"]


def test_a_bundle_is_covered_as_a_whole(tmp_path, small_bundle):
    bundle = shutil.copytree(small_bundle.path, tmp_path / "bundle")
    files = [file for file in bundle.rglob("*") if file.is_file() and "shared_assets" not in file.parts]
    assert check(bundle)
    for file in files:
        flip(file, 9)
        with pytest.raises(FormatError, match="bundle: is damaged"):
            check(bundle)
        flip(file, 9)
    files[0].rename(files[0].with_name("other"))
    with pytest.raises(FormatError, match="bundle: is damaged"):
        check(bundle)


def test_two_that_read_a_file_without_a_checksum_do_not_disturb_one_that_writes(path, caplog):
    caplog.set_level(logging.WARNING)
    path.parent.mkdir()
    path.write_bytes(b"earlier")
    write_checked(path, b"later")
    assert read_checked(path, LIMIT) == b"later"
    assert not caplog.text
