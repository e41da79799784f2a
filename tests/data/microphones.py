"""A microphone that ALSA plays from a file, for the real sounddevice and PortAudio."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

RATE = 48_000
_ALSA = """
pcm.!default {{ type plug slave {{ pcm "heard" format S16_LE rate {rate} channels 2 }} }}
pcm.heard {{ type file slave {{ pcm "null" }} file "/dev/null" infile "{file}" format "raw" }}
pcm.null {{ type null }}
"""


def portaudio_is_missing() -> str:
    """Why a microphone cannot be opened here; empty when it can."""
    if sys.platform != "linux":
        return "ALSA is Linux's"
    try:
        importlib.import_module("sounddevice")
    except (ImportError, OSError) as exc:
        return str(exc)
    return ""


def microphone(directory: Path, audio: npt.NDArray[np.float64]) -> dict[str, str]:
    """Variables of a process whose default card records `audio` (samples,), at `RATE` Hz, on both of its channels."""
    pcm = np.rint(np.stack([audio, audio], axis=1) * 32767).astype("<i2")
    pcm.tofile(directory / "heard.raw")
    (directory / "asound.conf").write_text(_ALSA.format(rate=RATE, file=directory / "heard.raw"))
    return {"ALSA_CONFIG_PATH": str(directory / "asound.conf")}
