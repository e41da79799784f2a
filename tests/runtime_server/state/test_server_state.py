"""A server's disk: what a restart finds, and what a crash in the middle leaves."""

import os
import shutil
import stat

import numpy as np
import pytest

from runtime_edge.base.checked_files import checksum_path
from runtime_edge.errors import FormatError, SignatureError
from runtime_edge.formats import minisign
from runtime_server.state.server_state import ServerState, bundle_paths, signing_key_file


@pytest.fixture
def kept(tmp_path, small_bundle, tiny_encoder):
    """A state with generations 1 to 3 (the same bundle under each number)."""
    state = ServerState(tmp_path / "server")
    for number in (1, 2, 3):
        shutil.copytree(small_bundle.path, state.bundle_path(number))
        state.save_weights(number, tiny_encoder.tensors)
    return state


def paths(state, newest=9):
    return [bundle.path for bundle, _ in state.generations(newest)]


def test_weights_come_back_as_they_were(kept, tiny_encoder):
    found = kept.load_weights(2)
    assert found.keys() == tiny_encoder.tensors.keys()
    for name, value in tiny_encoder.tensors.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert np.array_equal(found[name], value)


def test_the_newest_few_are_found_oldest_first(kept):
    assert paths(kept, 2) == [kept.bundle_path(2), kept.bundle_path(3)]
    assert ServerState(kept.root).generations(1)[0][0].path == kept.bundle_path(3)


def test_one_that_devices_run_is_found_however_old(kept):
    assert [bundle.path for bundle, _ in kept.generations(1, {1})] == [kept.bundle_path(1), kept.bundle_path(3)]
    assert [bundle.path for bundle, _ in kept.generations(1, {7})] == [kept.bundle_path(3)]


def test_old_generations_are_removed_but_those_that_are_needed(kept):
    assert kept.prune(1, {1}) == [2]
    assert paths(kept) == [kept.bundle_path(1), kept.bundle_path(3)]
    assert not kept.bundle_path(2).exists()
    left = {path.name.removesuffix(".sha256") for path in (kept.root / "weights").iterdir()}
    assert left == {"00001.pt", "00003.pt"}
    assert kept.prune(5) == []


def test_where_bundles_lie_is_told_without_what_lies_beside_them(kept, tmp_path):
    assert bundle_paths(kept.root) == {number: kept.bundle_path(number) for number in (1, 2, 3)}
    assert bundle_paths(tmp_path / "nowhere") == {}


def test_an_empty_state_has_none(tmp_path):
    assert ServerState(tmp_path / "new").generations(4) == []


def test_what_a_crash_left_half_done_is_left_out(kept, small_bundle):
    shutil.copytree(small_bundle.path, kept.bundle_path(4))  # died before the weights were written
    kept.save_weights(5, {})  # nothing else of it
    (kept.root / "generations" / ".00006.x1y2").mkdir()  # died while compiling
    (kept.root / "generations" / "00007.old").mkdir()
    assert paths(kept) == [kept.bundle_path(number) for number in (1, 2, 3)]


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut_short, flip, os.unlink])
@pytest.mark.parametrize("name", ["weights/00002.pt", "generations/00002/manifest.json"])
def test_a_damaged_generation_is_left_out_unless_devices_run_it(kept, damage, name, caplog):
    damage(kept.root / name)
    with pytest.raises(FormatError, match=r"00002(\.pt)?: is (damaged|missing): .* remove both files of generation 2"):
        kept.generations(4, {2})
    assert paths(kept) == [kept.bundle_path(1), kept.bundle_path(3)]
    assert "it is left out, because no device should run it" in caplog.text


def test_a_generation_whose_directory_is_gone_is_missed(kept):
    shutil.rmtree(kept.bundle_path(3))
    with pytest.raises(FormatError, match="00003: is missing"):
        kept.generations(4, {3})


def test_without_any_sound_generation_the_state_is_refused(kept):
    for number in (1, 2, 3):
        flip(kept.root / "weights" / f"{number:05d}.pt")
    with pytest.raises(FormatError, match=r"00003\.pt: is damaged"):
        kept.generations(4)


def test_weights_without_a_checksum_are_taken_once_and_have_one_then(kept):
    path = kept.root / "weights" / "00002.pt"
    checksum_path(path).unlink()
    assert len(kept.generations(4)) == 3
    flip(path)
    assert len(kept.generations(4)) == 2


def test_a_key_that_is_gone_is_not_replaced_by_another_one(tmp_path):
    state = ServerState(tmp_path / "server")
    key = state.signing_key(None)
    kept = (tmp_path / "server" / "signing.key").read_bytes()
    (tmp_path / "server" / "signing.key").unlink()
    with pytest.raises(SignatureError, match=r"signing\.key: is missing"):
        state.signing_key(None)
    checksum_path(tmp_path / "server" / "signing.key").unlink()
    with pytest.raises(SignatureError, match=r"signing\.key: is missing"):
        state.signing_key(None)
    (tmp_path / "server" / "signing.key").write_bytes(kept)
    (tmp_path / "server" / "signing.pub").write_text("")
    assert state.signing_key(None).public == key.public
    assert (tmp_path / "server" / "signing.pub").read_text() == key.public.to_text()


def test_the_key_is_made_once_and_kept_to_the_owner(tmp_path):
    state = ServerState(tmp_path / "server")
    key = state.signing_key(None)
    assert ServerState(tmp_path / "server").signing_key(None).public == key.public
    assert stat.S_IMODE((tmp_path / "server" / "signing.key").stat().st_mode) == 0o600
    assert (tmp_path / "server" / "signing.pub").read_text() == key.public.to_text()


def test_a_given_key_is_used_and_a_bad_one_refused(tmp_path):
    other = ServerState(tmp_path / "other")
    key = other.signing_key(None)
    state = ServerState(tmp_path / "server")
    assert state.signing_key(other.root / "signing.key").public == key.public
    assert not (state.root / "signing.key").exists()
    bad = tmp_path / "bad.key"
    bad.write_text("no key")
    with pytest.raises(SignatureError, match=r"bad\.key"):
        state.signing_key(bad)


def test_the_ledger_in_it_belongs_to_one_process_and_is_found_again(kept):
    ledger = kept.ledger()
    ledger.add("pi-1", "boot", 3)
    ledger.close()
    reborn = ServerState(kept.root).ledger()
    assert reborn.counts() == {"pi-1": 1}
    reborn.close()


def test_the_key_of_held_out_windows_is_made_once_and_its_owners_alone(tmp_path):
    key = ServerState(tmp_path).held_out_key()
    assert len(key) == 32
    assert ServerState(tmp_path).held_out_key() == key
    assert (tmp_path / "held_out.key").stat().st_mode & 0o777 == 0o600
    assert key != ServerState(tmp_path / "other").held_out_key()
    (tmp_path / "held_out.key").write_bytes(b"short")
    with pytest.raises(FormatError, match=r"held_out\.key: is damaged"):
        ServerState(tmp_path).held_out_key()


def test_the_key_that_signs_is_found_wherever_it_lies(tmp_path, signing_key):
    state, given = ServerState(tmp_path / "server"), tmp_path / "given.key"
    assert signing_key_file(state.root) is None
    minisign.write_key_pair(signing_key, given)
    state.signing_key(given)
    assert signing_key_file(state.root) == given
    note = state.root / "signing_key.path"
    for damage in (lambda: note.write_bytes(note.read_bytes().replace(b"given", b"gi6en")), note.unlink):
        damage()
        with pytest.raises(FormatError, match=rf"^{note}: is (damaged|missing).*the server writes it anew"):
            signing_key_file(state.root)
    state.signing_key(given)
    assert signing_key_file(state.root) == given
    own = state.signing_key(None)
    assert signing_key_file(state.root) == state.root / "signing.key"
    assert own.public != signing_key.public
