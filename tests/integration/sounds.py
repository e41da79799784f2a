"""Two kinds of sound that even an untrained encoder tells apart, for tests of heads."""

from __future__ import annotations

from pathlib import Path

import harness
import numpy as np
import soundfile

LABELS = ("hiss", "tone")


def sound(label: str, seconds: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * harness.SAMPLE_RATE)) / harness.SAMPLE_RATE
    if label == "hiss":
        return (rng.uniform(0.1, 0.3) * rng.standard_normal(len(time)).clip(-3, 3)).astype(np.float32)
    return (0.3 * np.sin(2 * np.pi * rng.uniform(600, 900) * time)).astype(np.float32)


def write_clips(directory: Path, clips: int = 6, seconds: float = 1.0) -> Path:
    """A folder with one subfolder of recordings for each label."""
    for label in LABELS:
        (directory / label).mkdir(parents=True)
        for seed in range(clips):
            path = directory / label / f"{seed}.wav"
            soundfile.write(path, sound(label, seconds, seed), harness.SAMPLE_RATE, subtype="PCM_16")
    return directory


def write_turns(path: Path, turns: int, seconds: float = 2.0) -> Path:
    """Hiss and tone in turns."""
    audio = np.concatenate([sound(LABELS[turn % 2], seconds, 100 + turn) for turn in range(turns)])
    soundfile.write(path, audio, harness.SAMPLE_RATE, subtype="PCM_16")
    return path


def heard(window: int, seconds: float = 2.0) -> str | None:
    """The label of a window of such a file; None when it holds both."""
    start = window * harness.HOP
    first, last = (int(sample // (seconds * harness.SAMPLE_RATE)) for sample in (start, start + harness.WINDOW - 1))
    return LABELS[first % 2] if first == last else None
