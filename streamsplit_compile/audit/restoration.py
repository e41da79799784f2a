"""Judges how well the log-mel image and the sound of recordings can be restored from what leaves a device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from runtime_edge.formats.manifest import FrontEndInfo
from streamsplit_compile.audit.inversion import intelligibility, invert, sound_of, train_inverter
from streamsplit_compile.audit.outlets import Array
from streamsplit_compile.audit.recogniser import standardised
from streamsplit_compile.audit.spoken_recordings import SpokenRecordings

_HEARD = 60
"""How many restored recordings STOI is taken of."""
_SAMPLES = 4
"""How many of them are written to listen to."""


def restored(
    values: Array, images: Array, spoken: SpokenRecordings, front_end: FrontEndInfo, samples: Path | None, name: str
) -> tuple[float, float | None]:
    """Squared error of restored images as a share of the mean image's, and the median STOI of their sound, if any.

    `values` (n, channels, rows, columns) are what arrived, `images` (n, mels, frames) those of the recordings. Sound is
    written to the directory `samples`, as `<number>-<name>.wav` beside `<number>-recording.wav`.
    """
    people = np.unique(spoken.speakers[~spoken.test])
    choosing = ~spoken.test & np.isin(spoken.speakers, people[:: max(2, len(people) // 20)])
    train = ~spoken.test & ~choosing
    mean, deviation = images[train].mean(0), np.maximum(images[train].std((0, 2))[:, None], 1e-6)
    wanted, given = ((images - mean) / deviation).astype(np.float32), standardised(values, train)
    inverter = train_inverter(given, wanted, train, choosing, seed=0)
    found, real = invert(inverter, given[spoken.test]) * deviation + mean, images[spoken.test]
    error = float(np.square(found - real).sum() / np.square(mean - real).sum())
    return error, _clear(found, spoken.windows[spoken.test], front_end, samples, name)


def _clear(images: Array, windows: Array, front_end: FrontEndInfo, samples: Path | None, name: str) -> float | None:
    """Median STOI of the sound of some images (n, mels, frames) against their windows (n, samples)."""
    info, heard = front_end.log_mel, list[float]()
    assert info is not None
    chosen = np.linspace(0, len(windows) - 1, min(_HEARD, len(windows))).astype(int)
    for number, place in enumerate(chosen):
        sound = sound_of(images[place], info, front_end.sample_rate, seed=int(place))[:: info.upsample]
        if (clear := intelligibility(sound, windows[place], front_end.sample_rate)) is not None:
            heard.append(clear)
        if samples is not None and number < _SAMPLES:
            samples.mkdir(parents=True, exist_ok=True)
            for what, audio in ((name, sound), ("recording", windows[place])):
                loudest = max(float(np.abs(audio).max()), 1e-9)
                soundfile.write(samples / f"{number}-{what}.wav", 0.9 * audio / loudest, front_end.sample_rate)
    return float(np.median(heard)) if heard else None
