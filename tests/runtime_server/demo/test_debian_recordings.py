"""Recordings out of packages, with an apt whose packages are made here."""

from __future__ import annotations

import csv
import struct

import numpy as np
import pytest
import soundfile

from runtime_edge.errors import FormatError
from runtime_server.demo.debian_recordings import SOUNDS, VOICES, WORDS, fetch
from runtime_server.demo.qt_resource import stored_files

pytestmark = pytest.mark.integration
FLITE = """#!/bin/sh
while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
cp {sound} "$out"
"""
APT_CACHE = """#!/bin/sh
shift 2
for name; do
    [ -d {packages}/$name ] && printf 'Package: %s\\nDescription: none\\nSize: 1000000\\n\\n' "$name"
done
[ $(ls {packages} | grep -vc downloads) = $# ] || exit 100
"""
APT_GET = """#!/bin/sh
[ "$1" = download ] || exit 1
echo "$@" >> {packages}/downloads
shift 2
for name; do echo $name > ${{name}}_1_all.deb; done
"""
DPKG_DEB = """#!/bin/sh
cp -r {packages}/$(cat $2) $3
"""


def resource_file(files: dict[str, bytes]) -> bytes:
    """A Qt resource file of version 1 with these in its root."""
    names, data, tree = b"", b"", struct.pack(">IHII", 0, 2, len(files), 1)
    for name, content in files.items():
        tree += struct.pack(">IHHHI", len(names), 0, 0, 0, len(data))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        data += struct.pack(">I", len(content)) + content
    places = (20, 20 + len(tree), 20 + len(tree) + len(data))
    return b"qres" + struct.pack(">4I", 1, *places) + tree + data + names


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """A folder whose subfolders are the packages that there are, and the programs that find them."""
    packages, programs = tmp_path / "packages", tmp_path / "bin"
    packages.mkdir()
    programs.mkdir()
    for name, text in (("apt-cache", APT_CACHE), ("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
        (programs / name).write_text(text.format(packages=packages))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return packages


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "sound.wav"
    soundfile.write(path, np.full(4000, 0.5), 16_000)
    return path


def provide(apt, package: str, sound) -> None:
    """Make a package with every file that the demo wants of it."""
    resources: dict[str, dict[str, bytes]] = {}
    for file in (file for files in SOUNDS[package].values() for file in files):
        path, _, inside = file.partition(":")
        (apt / package / path).parent.mkdir(parents=True, exist_ok=True)
        if inside:
            resources.setdefault(path, {})[inside] = sound.read_bytes()
        else:
            (apt / package / path).write_bytes(sound.read_bytes())
    for path, files in resources.items():
        (apt / package / path).write_bytes(resource_file(files))


def provide_flite(apt, sound) -> None:
    program = apt / "flite" / "usr" / "bin" / "flite"
    program.parent.mkdir(parents=True)
    program.write_text(FLITE.format(sound=sound))
    program.chmod(0o755)
    library = apt / "libflite1" / "usr" / "lib" / "any" / "libflite.so.1"
    library.parent.mkdir(parents=True)
    library.touch()


def test_sounds_and_spoken_words_become_labelled_recordings_once(apt, sound, tmp_path) -> None:
    for package in SOUNDS:
        provide(apt, package, sound)
    provide_flite(apt, sound)
    said: list[str] = []
    cache = tmp_path / "cache" / "audio"

    assert fetch(cache, said.append)
    assert "5 MB, nothing is installed" in said[-1]
    with (cache / "labels.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    wanted = sum(len(files) for classes in SOUNDS.values() for files in classes.values())
    assert len(rows) == wanted + len(WORDS) * len(VOICES)
    assert all((cache / row["filename"]).is_file() for row in rows)
    spoken, rate = soundfile.read(cache / "yes" / "flite-rms.wav")
    assert len(spoken) == rate, "a second"
    assert np.flatnonzero(spoken).tolist() == list(range(6000, 10_000)), "with the word in its middle"
    assert fetch(cache, said.append)
    assert len((apt / "downloads").read_text().splitlines()) == 1, "then it is there"


def test_what_a_system_does_not_have_is_named_and_done_without(apt, sound, tmp_path) -> None:
    provide(apt, "gcompris-qt-data", sound)
    said: list[str] = []

    assert fetch(tmp_path / "audio", said.append)
    assert said[0] == "this system's packages do not include scratch, minetest-data, flite, libflite1"
    labels = {line.split(",")[1] for line in (tmp_path / "audio" / "labels.csv").read_text().splitlines()[1:]}
    assert labels == set(SOUNDS["gcompris-qt-data"])


def test_a_package_without_a_file_is_told(apt, sound, tmp_path) -> None:
    provide(apt, "scratch", sound)
    next(apt.glob("scratch/**/Rooster.wav")).unlink()
    said: list[str] = []

    assert fetch(tmp_path / "audio", said.append)
    assert any("scratch has no Rooster.wav any more" in line for line in said)


def test_lists_that_are_too_old_are_renewed_where_that_is_allowed(apt, sound, tmp_path, monkeypatch) -> None:
    provide(apt, "scratch", sound)
    program = tmp_path / "bin" / "apt-get"
    renewed = f'[ "$1" = update ] && exec touch {apt}/downloads\n[ -e {apt}/downloads ] || exit 100\n'
    program.write_text(program.read_text().replace("#!/bin/sh\n", "#!/bin/sh\n" + renewed))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert not fetch(tmp_path / "audio", lambda line: None)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert fetch(tmp_path / "audio", lambda line: None)


def test_packages_that_cannot_be_unpacked_are_told_and_nothing_is_kept(apt, sound, tmp_path) -> None:
    provide(apt, "scratch", sound)
    (tmp_path / "bin" / "dpkg-deb").write_text("#!/bin/sh\nexit 2\n")
    said: list[str] = []

    assert not fetch(tmp_path / "audio", said.append)
    assert said[-1] == "the packages cannot be unpacked"
    assert not (tmp_path / "audio").exists()


def test_a_voice_that_does_not_speak_is_told(apt, sound, tmp_path) -> None:
    provide(apt, "scratch", sound)
    provide_flite(apt, sound)
    (apt / "flite" / "usr" / "bin" / "flite").write_text("#!/bin/sh\nexit 1\n")
    said: list[str] = []

    assert fetch(tmp_path / "audio", said.append)
    assert said[-1] == "flite does not speak here, so there are no words"


def test_without_a_network_nothing_is_kept(apt, sound, tmp_path) -> None:
    provide(apt, "scratch", sound)
    (tmp_path / "bin" / "apt-get").write_text("#!/bin/sh\nexit 100\n")
    said: list[str] = []

    assert not fetch(tmp_path / "audio", said.append)
    assert said[-1] == "the packages cannot be downloaded"
    assert not (tmp_path / "audio").exists()


def test_a_resource_file_gives_what_it_stores_and_a_damaged_one_is_refused() -> None:
    data = resource_file({"a.ogg": b"first", "b.ogg": b"second"})

    assert dict(stored_files(data)) == {"/a.ogg": b"first", "/b.ogg": b"second"}
    for damaged in (b"RIFF", data[:30], data[:10]):
        with pytest.raises(FormatError, match="Qt resource file"):
            list(stored_files(damaged))
