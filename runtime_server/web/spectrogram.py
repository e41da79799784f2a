"""The picture of a sound: loudness over time and frequency, small enough to be sent as numbers."""

from __future__ import annotations

import base64
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_edge.formats.encoder.log_mel_info import LogMelInfo
from runtime_edge.inference.mel_matrices import hann, mel_bank

BANDS, MAX_COLUMNS = 48, 240
_FRAME_S, _RANGE_DB = 0.032, 70.0
_LOWEST_HZ = 40.0


def spectrogram(samples: npt.NDArray[np.int16], rate: int) -> dict[str, Any]:
    """Levels of samples (n,) in mel bands.

    `levels` has `columns` times `bands` bytes in base64, column by column, the lowest band first. 255 is the loudest
    value of the picture, 0 is 70 dB below it. The bands range from `lowest_hz` to `highest_hz`.
    """
    length, window, bank = _transform(rate)
    audio = np.pad(samples.astype(np.float32), (0, max(0, length - len(samples))))
    columns = int(np.clip((len(audio) - length) // (length // 2) + 1, 1, MAX_COLUMNS))
    starts = np.linspace(0, len(audio) - length, columns).astype(np.int64)
    frames = np.lib.stride_tricks.sliding_window_view(audio, length)[starts] * window
    power = np.abs(np.fft.rfft(frames)) ** 2 @ bank.T
    level = 10 * np.log10(np.maximum(power, 1e-3))
    scaled = np.clip(1 + (level - level.max()) / _RANGE_DB, 0, 1)
    return {
        "columns": columns,
        "bands": BANDS,
        "lowest_hz": _LOWEST_HZ,
        "highest_hz": rate / 2,
        "levels": base64.b64encode(np.rint(255 * scaled).astype(np.uint8).tobytes()).decode(),
    }


@cache
def _transform(rate: int) -> tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Length of a frame, its window, and the bank of mel bands (bands, bins)."""
    length = 2 * round(rate * _FRAME_S / 2)
    info = LogMelInfo(
        n_fft=length,
        win_length=length,
        hop_length=length // 2,
        n_mels=BANDS,
        f_min=_LOWEST_HZ,
        f_max=rate / 2,
        eps=1e-3,
    )
    return length, hann(info), mel_bank(info, rate)
