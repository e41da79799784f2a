"""When recordings began, as recorders write it."""

from __future__ import annotations

import datetime as dt
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runtime_edge.audio import open_source
from runtime_edge.audio.files.recorded_time import began


def write(path: Path, comment: str | None = None, chunks: dict[bytes, bytes] | None = None) -> Path:
    with soundfile.SoundFile(path, "w", 16_000, 1, "PCM_16") as file:
        if comment is not None:
            file.comment = comment
        file.write(np.zeros(800))
    extra = b"".join(
        struct.pack("<4sI", name, len(data)) + data + bytes(len(data) % 2) for name, data in (chunks or {}).items()
    )
    path.write_bytes(path.read_bytes() + extra)
    return path


def of(path: Path) -> str | None:
    """What a source says, in words."""
    (first,) = [block.begins for block in open_source(str(path), 16_000) if block.begins is not None]
    return None if first.began is None else first.began.isoformat()


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("20260501_043000.WAV", "2026-05-01T04:30:00"),
        ("20260501_043000T.WAV", "2026-05-01T04:30:00"),
        ("SMA01234_20260501_043000.wav", "2026-05-01T04:30:00"),
        ("20260501T043000.flac", "2026-05-01T04:30:00"),
        ("2026-05-01_04-30-00.wav", "2026-05-01T04:30:00"),
        ("2026-05-01T04.30.00.wav", "2026-05-01T04:30:00"),
        ("S4A_20260501$043000.wav", "2026-05-01T04:30:00"),
        ("20260501_043000-0200.wav", "2026-05-01T04:30:00"),
        ("20260501T043000Z.wav", "2026-05-01T04:30:00+00:00"),
        ("site_20260501T043000+1000_12.wav", "2026-05-01T04:30:00+10:00"),
        ("20260501T043000-03_30.wav", "2026-05-01T04:30:00-03:30"),
        ("20260501T043000+9900.wav", None),
        ("2026-0501_043000.wav", None),
        ("20261301_043000.wav", None),
        ("20260501_256000.wav", None),
        ("120260501_0430001.wav", None),
        ("19700101_000005.wav", None),
        ("garden.wav", None),
    ],
)
def test_a_name_may_say_it_and_knows_a_zone_only_behind_a_t(tmp_path: Path, name: str, time: str | None) -> None:
    assert of(write(tmp_path / name)) == time


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize(
    ("comment", "time"),
    [
        ("Recorded at 04:30:00 01/05/2026 (UTC) by AudioMoth 24F3190361CA4F2E at gain setting 2", "+00:00"),
        ("Recorded at 04:30:00 01/05/2026 (UTC+2) by AudioMoth 24F3190361CA4F2E", "+02:00"),
        ("Recorded at 04:30:00 01/05/2026 (UTC-3:30) by AudioMoth 24F3190361CA4F2E", "-03:30"),
        ("Recorded in the garden", None),
    ],
)
def test_the_comment_of_an_audiomoth_wins_over_the_name(
    tmp_path: Path, suffix: str, comment: str, time: str | None
) -> None:
    named = of(write(tmp_path / f"20250101_000000.{suffix}", comment))

    assert named == ("2025-01-01T00:00:00" if time is None else f"2026-05-01T04:30:00{time}")


@pytest.mark.parametrize(
    ("stamp", "time"),
    [
        ("2026-05-01T04:30:00+02:00", "2026-05-01T04:30:00+02:00"),
        ("2026-05-01T04:30:00.25Z", "2026-05-01T04:30:00.250000+00:00"),
        ("2026-05-01 04:30:00", "2026-05-01T04:30:00"),
        ("yesterday", None),
    ],
)
def test_guano_says_it(tmp_path: Path, stamp: str, time: str | None) -> None:
    text = f"GUANO|Version: 1.0\nMake: Titley\nTimestamp: {stamp}\nNote: \u00fc\n".encode()

    assert of(write(tmp_path / "a.wav", chunks={b"guan": text})) == time


def test_a_broadcast_wave_says_it(tmp_path: Path) -> None:
    head = bytes(256 + 32 + 32)

    assert of(write(tmp_path / "a.wav", chunks={b"bext": head + b"2026-05-0104:30:00" + bytes(264)})) == (
        "2026-05-01T04:30:00"
    )
    assert of(write(tmp_path / "b.wav", chunks={b"bext": head + bytes(282)})) is None


def test_a_comment_with_a_zone_beyond_a_day_is_no_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav")

    assert began(path, "Recorded at 04:30:00 01/05/2026 (UTC+99)") is None
    assert began(path, "Recorded at 04:30:00 01/05/2026 (UTC)") == dt.datetime(
        2026, 5, 1, 4, 30, tzinfo=dt.timezone.utc
    )
