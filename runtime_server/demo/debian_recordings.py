"""Labelled recordings from Debian packages, which are downloaded and unpacked but not installed.

The sounds come from games and children's programs. No package contains the ten words, so flite's voices speak them.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from runtime_edge.errors import FormatError
from runtime_server.demo.qt_resource import stored_files

TABLE = "labels.csv"
_SCRATCH = "usr/share/scratch/Media/Sounds"
_GCOMPRIS = "usr/share/gcompris-qt/rcc"
_FIRE = "usr/share/games/minetest/games/minetest_game/mods/fire/sounds"
SOUNDS = {
    "scratch": {
        "baby_cry": (f"{_SCRATCH}/Human/BabyCry.mp3",),
        "dog_bark": (f"{_SCRATCH}/Animal/Dog1.wav", f"{_SCRATCH}/Animal/Dog2.wav"),
        "person_sneeze": (f"{_SCRATCH}/Human/Sneeze-female.wav", f"{_SCRATCH}/Human/Sneeze-male.wav"),
        "rooster": (f"{_SCRATCH}/Animal/Rooster.wav",),
    },
    "minetest-data": {
        "fire_crackling": tuple(
            f"{_FIRE}/fire_{name}.ogg" for name in ("small", "large", "fire.1", "fire.2", "fire.3")
        ),
    },
    "gcompris-qt-data": {
        "dog_bark": (
            f"{_GCOMPRIS}/explore_farm_animals.rcc:dog.ogg",
            f"{_GCOMPRIS}/memory-sound.rcc:LRBark_1_LA_cut.ogg",
            f"{_GCOMPRIS}/memory-sound.rcc:LRBark_3_LA_cut.ogg",
        ),
        "helicopter": (f"{_GCOMPRIS}/guessnumber.rcc:helicopter.wav",),
        "rain": (f"{_GCOMPRIS}/memory-sound.rcc:LRRain_in_garden_01_LA_cut.ogg",),
    },
}
"""All recordings in these packages of the sounds that the head knows: package, class, and files (or files inside a
resource file)."""
_FLITE = ("flite", "libflite1")
VOICES = ("awb", "kal16", "rms", "slt")
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
_FIELD = re.compile(r"^(Package|Size): (\w[\w.+-]*)$", re.M)
_DOWNLOAD_S, _QUICK_S = 600.0, 60.0

Say = Callable[[str], None]


def fetch(cache: Path, say: Say) -> bool:
    """Fill a folder with recordings and `labels.csv` unless they are there; returns whether they are there now.

    Packages that this Debian release does not have are named and skipped. Returns False without apt, packages or
    network.
    """
    if (cache / TABLE).exists():
        return True
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        say("there is no apt here to fetch recordings with")
        return False
    wanted = [*SOUNDS, *_FLITE]
    sizes = _sizes(wanted)
    if not sizes and _lists_renewed():
        sizes = _sizes(wanted)
    if missing := [name for name in wanted if name not in sizes]:
        say(f"this system's packages do not include {', '.join(missing)}")
    if not sizes:
        return False
    say(f"fetching recordings out of {', '.join(sizes)}: {sum(sizes.values()) / 1e6:.0f} MB, nothing is installed")
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as made:
        work = Path(made)
        (work / "recordings").mkdir()
        # Package lists that are months old name versions that no longer exist.
        if not _downloaded(sizes, work) and not (_lists_renewed() and _downloaded(_sizes(wanted), work)):
            say("the packages cannot be downloaded")
            return False
        if not _unpacked(work):
            say("the packages cannot be unpacked")
            return False
        rows = [*_sounds(work, say), *_words(work, say)]
        if not rows:
            return False
        with (work / "recordings" / TABLE).open("w", newline="") as table:
            csv.writer(table).writerows([("filename", "class", "package"), *rows])
        try:
            (work / "recordings").rename(cache)
        except OSError:
            if not (cache / TABLE).exists():  # another demo was quicker
                raise
    return True


def _lists_renewed() -> bool:
    """Update the package lists, which only root may do; returns whether that worked."""
    return os.geteuid() == 0 and _run("apt-get", "update", "-qq", timeout_s=_DOWNLOAD_S)


def _downloaded(packages: Iterable[str], work: Path) -> bool:
    return _run("apt-get", "download", "-qq", *packages, folder=work, timeout_s=_DOWNLOAD_S)


def _unpacked(work: Path) -> bool:
    """Unpack each package into a folder named after it; returns whether all could be unpacked."""
    return all(
        _run("dpkg-deb", "-x", str(package), str(work / package.name.partition("_")[0]), timeout_s=_DOWNLOAD_S)
        for package in sorted(work.glob("*.deb"))
    )


def _sizes(names: list[str]) -> dict[str, int]:
    """The download size in bytes of each package that exists."""
    command = ["apt-cache", "show", "--no-all-versions", *names]
    told = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_S)
    records = [dict(_FIELD.findall(record)) for record in told.stdout.split("\n\n")]
    return {record["Package"]: int(record["Size"]) for record in records if record.keys() >= {"Package", "Size"}}


def _run(*command: str, timeout_s: float, folder: Path | None = None, libraries: Path | None = None) -> bool:
    environment = os.environ if libraries is None else {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _sounds(work: Path, say: Say) -> Iterator[tuple[str, str, str]]:
    """Put the recordings in place; yields file, class and package of each."""
    for package, classes in SOUNDS.items():
        if not (work / package).is_dir():
            continue
        for label, files in classes.items():
            for file in files:
                path, _, inside = file.partition(":")
                name = Path(inside or path).name
                try:
                    data = _contents(work / package / path, inside)
                except (OSError, FormatError) as exc:
                    say(f"{package} has no {name} any more ({exc})")
                    continue
                target = work / "recordings" / label / f"{package}-{name}"
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(data)
                yield str(target.relative_to(work / "recordings")), label, package


def _contents(path: Path, inside: str) -> bytes:
    """The contents of a file, or of one inside a resource file. Raises OSError or FormatError."""
    if not inside:
        return path.read_bytes()
    for name, data in stored_files(path.read_bytes()):
        if name.endswith(f"/{inside}"):
            return data
    raise FormatError(f"not in {path.name}")


def _words(work: Path, say: Say) -> Iterator[tuple[str, str, str]]:
    """The same for spoken words; each is placed in the middle of one second, as the encoder expects it."""
    program = work / "flite" / "usr" / "bin" / "flite"
    libraries = next((work / "libflite1").glob("usr/lib/*/libflite.so.1"), None)
    if not program.exists() or libraries is None:
        return
    spoken = 0
    for word in WORDS:
        (work / "recordings" / word).mkdir()
        for voice in VOICES:
            path = work / "recordings" / word / f"flite-{voice}.wav"
            command = (str(program), "-voice", voice, "-t", word, "-o", str(path))
            if _run(*command, libraries=libraries.parent, timeout_s=_QUICK_S) and path.exists():
                _centre(path)
                spoken += 1
                yield str(path.relative_to(work / "recordings")), word, "flite"
    if not spoken:
        say("flite does not speak here, so there are no words")


def _centre(path: Path) -> None:
    spoken, rate = soundfile.read(path, dtype="float32")
    missing = max(0, rate - len(spoken))
    soundfile.write(path, np.pad(spoken, (missing // 2, missing - missing // 2)), rate, subtype="PCM_16")
