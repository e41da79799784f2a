"""Raise a waveform's rate inside the graph, for encoders trained at a multiple of the source's rate."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

HALF_TAPS = 32
KAISER_BETA = 8.0


class Upsample(nn.Module):
    """Band-limited interpolation by a whole factor: (batch, samples) -> (batch, factor * samples).

    Every `factor`-th output is an input sample unchanged; those between come from a windowed sinc, one fixed
    filter for each phase, with silence beyond both ends.
    """

    between: Tensor

    def __init__(self, factor: int) -> None:
        super().__init__()
        offset = np.arange(-HALF_TAPS + 1, HALF_TAPS + 1) - np.arange(1, factor)[:, None] / factor
        taps = np.sinc(offset) * np.i0(KAISER_BETA * np.sqrt(1 - (offset / HALF_TAPS) ** 2))
        taps /= taps.sum(axis=1, keepdims=True)
        self.register_buffer("between", torch.from_numpy(taps[:, None].astype(np.float32)), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, samples) float32 -> (batch, factor * samples) float32."""
        signal = waveform.unsqueeze(1)
        padded = nn.functional.pad(signal, (HALF_TAPS - 1, HALF_TAPS))
        phases = torch.cat([signal, nn.functional.conv1d(padded, self.between)], dim=1)
        return phases.transpose(1, 2).flatten(1)
