"""Limits how large an activation may be to train or judge: a device can send values that no sound produces.

There is one limit for each cut, because harmful activations are large compared with what the next block usually gets.
Single channels are no measure: calibration may have seen almost nothing in the treble, and recordings then exceed it
three hundredfold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import fx

from runtime_edge.formats.manifest import BundleInfo, Cut
from streamsplit_compile.encoder.segment import run_segments

FAR = 4.0
"""How many times the largest known value an activation may reach. Recordings reach at most 3 times the values of the
synthetic soundscape (in a power spectrum), and rarely 2 times elsewhere."""
_PERIODS = (4, 16, 64)
"""Of the full-scale tones, in samples."""


class ActivationLimit(NamedTuple):
    """The limit for activations at one cut that may be trained on."""

    largest: float
    """Largest magnitude of any value."""
    rms: float
    """Root mean square of all values: sound makes only a few of them large, but a forged activation may have only large
    ones."""


def activation_limits(info: BundleInfo, segments: Sequence[fx.GraphModule]) -> list[ActivationLimit]:
    """For each cut, how large an activation may be for training.

    Its largest value is at most `FAR` times the largest that calibration saw or that noise and tones at full scale
    produce, because calibration may not have heard anything loud. Its root mean square is at most `FAR` times that of
    noise, tones and silence.
    """
    largest, rms = [1.0] + [0.0] * len(segments), [1.0] + [0.0] * len(segments)
    for waveform in _full_scale(info.front_end.window_samples):
        activation = waveform[None]
        for number, segment in enumerate(segments, 1):
            with torch.inference_mode():
                activation = run_segments([segment], activation)
            largest[number] = max(largest[number], float(activation.abs().max()))
            rms[number] = max(rms[number], float(activation.square().mean().sqrt()))
    return [
        ActivationLimit(FAR * max(most, _calibrated(cut)), FAR * usual)
        for most, usual, cut in zip(largest, rms, info.cuts, strict=True)
    ]


def within(limit: ActivationLimit, activations: torch.Tensor) -> list[bool]:
    """For each of some activations (n, ...) float32, whether it is within a limit; one with a NaN is not."""
    flat = activations.flatten(1)
    low, high = flat.aminmax(dim=1)
    rms = flat.norm(dim=1) / math.sqrt(flat.shape[1])
    kept = (torch.maximum(-low, high) <= limit.largest) & (rms <= limit.rms)
    return [bool(one) for one in kept]


def _full_scale(samples: int) -> torch.Tensor:
    """(waveforms, samples) float32: silence, whose logarithm is far from 0, white noise, and tones."""
    noise = np.random.default_rng(0).uniform(-1.0, 1.0, samples)
    tones = [np.sin(2 * math.pi * np.arange(samples) / period + 0.1) for period in _PERIODS]
    return torch.from_numpy(np.stack([np.zeros(samples), noise, *tones]).astype(np.float32))


def _calibrated(cut: Cut) -> float:
    """The largest magnitude that calibration saw at a cut; 0 if it was not kept."""
    if cut.int8 is None:
        return 0.0
    scale, zero = cut.int8.arrays(cut.shape)
    steps = np.maximum(127 - zero.astype(np.int32), 128 + zero.astype(np.int32))
    return float((scale * steps).max())
