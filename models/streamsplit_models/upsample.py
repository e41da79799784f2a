"""Raise a waveform's rate inside the graph, for encoders trained at a multiple of the source's rate."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

HALF_TAPS = 32
KAISER_BETA = 8.0
STEP = 8
"""Input samples that one row of the convolution covers."""


class Upsample(nn.Module):
    """Band-limited interpolation by a whole factor: (batch, samples) -> (batch, factor * samples).

    With pre-emphasis c the output is y[t] - c y[t-1], still a single product with a matrix.

    Every `factor`-th output is an input sample unchanged; those between come from a windowed sinc, one fixed filter
    for each phase, with silence beyond both ends. All outputs of `STEP` samples are one product with a matrix:
    runtimes sum a product with a single row in a different order, and above the source's band, where the filters
    cancel, the logarithm of a front end would show the difference.
    """

    rows: Tensor

    def __init__(self, factor: int, preemphasis: float = 0.0) -> None:
        super().__init__()
        offset = np.arange(-HALF_TAPS + 1, HALF_TAPS + 1) - np.arange(factor)[:, None] / factor
        taps = np.sinc(offset) * np.i0(KAISER_BETA * np.sqrt(1 - (offset / HALF_TAPS) ** 2))
        taps = (taps / taps.sum(axis=1, keepdims=True)).round(15)  # a sinc at a whole number is 0, but not in float64
        taps = np.pad(taps, ((0, 0), (1, 0)))  # the first tap is the earlier sample that pre-emphasis looks at
        before = np.concatenate([np.roll(taps[-1:], -1, axis=1), taps[:-1]])
        taps = taps - preemphasis * before
        rows = np.stack([np.pad(taps, ((0, 0), (start, STEP - 1 - start))) for start in range(STEP)])
        rows = rows.reshape(STEP * factor, 1, -1).astype(np.float32)
        self.register_buffer("rows", torch.from_numpy(rows), persistent=False)
        self.factor = factor

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, samples) float32 -> (batch, factor * samples) float32."""
        samples = waveform.shape[1]
        excess = -samples % STEP
        padded = nn.functional.pad(waveform.unsqueeze(1), (HALF_TAPS, HALF_TAPS + excess))
        raised = nn.functional.conv1d(padded, self.rows, stride=STEP).transpose(1, 2).flatten(1)
        return raised[:, : self.factor * samples] if excess else raised
