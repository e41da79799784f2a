"""What the demo plays: three devices on three links, and the audio each one hears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from runtime_edge.audio.files.folder import audio_files
from runtime_server.harness.shaper import Phase
from streamsplit_compile.bundle.soundscape import soundscape

SAMPLE_RATE = 16_000
HOP_S = 0.5


@dataclass(frozen=True)
class DemoDevice:
    """One device process and its emulated link."""

    name: str
    target: str
    phases: tuple[Phase, ...]
    one_way_ms: float
    swapped: bool = False
    """Whether it gets another splitter table half-way."""


def devices(seconds: float) -> list[DemoDevice]:
    """A Wi-Fi Pi whose link collapses, an LTE gateway that recovers, a laptop with a slow middle."""
    third = seconds / 3
    return [
        DemoDevice("pi-wifi", "rpi4", (Phase(third, 8.0), Phase(third, 0.15), Phase(third, 8.0)), 5.0),
        DemoDevice("pi-lte", "rpi4", (Phase(third, 0.15), Phase(third, 2.0), Phase(third, 1.0)), 25.0, swapped=True),
        DemoDevice("laptop", "m2", (Phase(third, 16.0), Phase(third, 0.3), Phase(third, 4.0)), 10.0),
    ]


def share_audio(
    directory: Path | None, names: Sequence[str], work: Path, seconds: float, seed: int
) -> tuple[str, dict[str, Path]]:
    """A source directory for each device and what the audio is.

    Recordings are dealt out in turn, as links; without any, each device hears a synthesised soundscape of its own.
    Raises SourceError when the directory holds no audio.
    """
    sources = {name: work / "audio" / name for name in names}
    for source in sources.values():
        source.mkdir(parents=True)
    if directory is None:
        for offset, source in enumerate(sources.values()):
            audio = soundscape(seconds, SAMPLE_RATE, seed + offset)
            soundfile.write(source / "soundscape.wav", audio, SAMPLE_RATE, subtype="PCM_16")
        return "a synthesised soundscape (no recordings were given)", sources
    found = audio_files(directory)
    for index, path in enumerate(found):
        for offset, source in enumerate(sources.values()):
            if len(found) < len(sources) or index % len(sources) == offset:
                (source / f"{index:05d}{path.suffix}").symlink_to(path.resolve())
    return f"{len(found)} recordings from {directory.name}/", sources
