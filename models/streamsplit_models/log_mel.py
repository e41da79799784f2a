"""The log-mel front end as part of an encoder's graph (docs/method.md, section 1).

    log_mel = LogMel(PRESETS["paper"])
    image = log_mel(waveform)        # (batch, samples) float32 -> (batch, 1, mels, frames) float32

The DFT of a frame is computed as two short ones, each a product with fixed matrices. The mel filter bank is a few
products, each over only the bins that its bands cover. These are ordinary layers that every runtime has, so the
arithmetic is the same in training and wherever else the graph runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamsplit_models.filters import ShortTransforms, dft_kernel, factors, hann, mel_filters
from streamsplit_models.front_end import FrontEnd
from streamsplit_models.upsample import Upsample

_GROUPS = 4
"""Groups of bands, one product each. By measurement, fewer cost more arithmetic and more cost as many calls."""
_MAX_TAPS = 100


class LogMel(nn.Module):
    """Log-mel image of a waveform by fixed matrices; no parameters, nothing in the state_dict.

    If `n_fft` has no worthwhile factors, the DFT is one product with a dense matrix. Raises ValueError if no band
    contains a bin of the DFT.
    """

    dft: Tensor
    places: Tensor
    window: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, config: FrontEnd) -> None:
        super().__init__()
        self.config = c = config
        emphasis = c.preemphasis if c.preemphasis_on == "waveform" else 0.0
        self.upsample = Upsample(c.upsample, emphasis) if c.upsample > 1 else nn.Identity()
        bank = mel_filters(c.sample_rate * c.upsample, c.n_fft, c.n_mels, c.f_min, c.f_max, c.mel_scale, c.mel_norm)
        used = np.flatnonzero(bank.any(axis=0))
        if not len(used):
            raise ValueError(
                f"front end: f_max is {c.f_max!r}, must be further from f_min = {c.f_min}: no bin of the DFT is in any "
                "band"
            )
        lengths = factors(c.n_fft, c.win_length)
        self.short: ShortTransforms | None = None
        if lengths is None:
            bins = self._add_dense(used)
        else:
            bins = self._add_short(ShortTransforms(*lengths, hann(c.win_length, c.window), int(used[-1])))
        self.spans = self._add_bands(np.where(bins >= 0, bank[:, bins], 0.0))

    def describe(self) -> dict[str, Any]:
        """The fields of its front end, from which a device may compute the same image in its own way."""
        return self.config.to_dict()

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, samples) float32 -> (batch, 1, mels, frames) float32."""
        config = self.config
        signal = self.upsample(waveform)
        if config.preemphasis and config.preemphasis_on == "waveform":
            signal = signal[:, 1:] if config.upsample > 1 else signal[:, 1:] - config.preemphasis * signal[:, :-1]
        if config.center:
            signal = self._reflect(signal)
        spectrum = self._dense_power(signal) if self.short is None else self._short_power(signal, self.short)
        if config.power == 1.0:
            spectrum = spectrum.sqrt()
        bands = self._in_bands(spectrum)
        bands = bands.clamp(min=config.eps) if config.log == "floor" else bands + config.eps
        image = bands.log().unsqueeze(1)
        if config.scale != 1.0:
            image = image * config.scale
        return image + config.offset if config.offset else image

    def _add_short(self, short: ShortTransforms) -> npt.NDArray[np.int64]:
        """Add the matrices of two short transforms; returns the bin of each spectrum value, -1 for duplicates."""
        c = self.config
        self.short = short
        self.register_buffer("places", torch.from_numpy(short.places(c.frames, c.hop_length)), persistent=False)
        self._add("window", short.weights)
        self._add("first", short.first)
        self._add("second", short.second)
        return short.bins

    def _add_dense(self, used: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Add the matrix of one long transform for the bins in `used`; returns `used`."""
        c = self.config
        per_frame = c.preemphasis if c.preemphasis_on == "frame" else 0.0
        kernel = dft_kernel(c.n_fft, c.win_length, c.window, per_frame, c.remove_dc)[:, used]
        self._add("dft", kernel.reshape(-1, 1, c.win_length))
        return used

    def _add_bands(self, bank: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
        """Add one matrix for each group of neighbouring bands; returns the span of the spectrum that each covers."""
        spans = []
        for group, rows in enumerate(np.array_split(bank, min(_GROUPS, len(bank)))):
            used = np.flatnonzero(rows.any(axis=0))
            begin, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
            self._add(f"bands_{group}", rows[:, begin:end])
            spans.append((begin, end))
        return spans

    def _add(self, name: str, values: npt.NDArray[np.float64]) -> None:
        self.register_buffer(name, torch.from_numpy(values.astype(np.float32)), persistent=False)

    def _short_power(self, signal: Tensor, short: ShortTransforms) -> Tensor:
        """Power spectrum (batch, bins, frames) of a signal (batch, samples), by two short transforms."""
        c, batch = self.config, signal.shape[0]
        frames = 1 + (signal.shape[1] - c.win_length) // c.hop_length
        emphasis = c.preemphasis if c.preemphasis_on == "frame" else 0.0
        emphasised = signal
        if emphasis:
            # The first sample of a frame would differ, but the window is 0 there.
            emphasised = torch.cat([signal[:, :1], signal[:, 1:] - emphasis * signal[:, :-1]], dim=1)
        cut = self._cut(emphasised, frames, short)
        if c.remove_dc:
            mean = nn.functional.avg_pool1d(signal.unsqueeze(1), c.win_length, c.hop_length)
            cut = cut - mean.unsqueeze(3) * (1.0 - emphasis)
        cut = (cut * self.window).view(batch, short.taps, frames * short.inner)
        residues = torch.matmul(self.first, cut).view(batch, 2, short.half, frames, short.inner)
        residues = residues.permute(0, 2, 3, 1, 4).reshape(batch, short.half, frames, 2 * short.inner)
        squares = torch.matmul(residues, self.second).square()
        wanted = self.second.shape[2] // 2
        power = squares[..., :wanted] + squares[..., wanted:]
        return power.permute(0, 3, 1, 2).reshape(batch, wanted * short.half, frames)

    def _cut(self, signal: Tensor, frames: int, short: ShortTransforms) -> Tensor:
        """The frames of a signal (batch, samples): (batch, taps, frames, inner)."""
        hop, run = self.config.hop_length, short.run(self.config.hop_length)
        places = self.places
        if frames != self.config.frames:
            places = torch.from_numpy(short.places(frames, hop)).to(places.device)
        span = (frames - 1) * hop + short.taps * short.inner
        if signal.shape[1] < span:
            signal = nn.functional.pad(signal, (0, span - signal.shape[1]))
        runs = signal[:, :span].reshape(signal.shape[0], -1, run)
        return runs.index_select(1, places).view(signal.shape[0], short.taps, frames, short.inner)

    def _dense_power(self, signal: Tensor) -> Tensor:
        """Power spectrum (batch, bins, frames) of a signal (batch, samples), by one long transform.

        The sum over a frame is built from partial sums, short enough that every runtime adds them in the same order.
        Otherwise a loud tone leaves different rounding errors in the quiet bins, which the logarithm makes visible.
        """
        config, signal = self.config, signal.unsqueeze(1)
        span = (signal.shape[2] - config.win_length) // config.hop_length * config.hop_length
        total: Tensor | None = None
        for start in range(0, config.win_length, _MAX_TAPS):
            taps = self.dft[:, :, start : start + _MAX_TAPS]
            piece = signal[:, :, start : start + span + taps.shape[2]]
            part = nn.functional.conv1d(piece, taps, stride=config.hop_length)
            total = part if total is None else total + part
        assert total is not None
        cosine, sine = total.chunk(2, dim=1)
        return cosine * cosine + sine * sine

    def _in_bands(self, spectrum: Tensor) -> Tensor:
        """(batch, bins, frames) -> (batch, mels, frames)."""
        groups = [
            torch.matmul(self.get_buffer(f"bands_{group}"), spectrum[:, begin:end])
            for group, (begin, end) in enumerate(self.spans)
        ]
        return groups[0] if len(groups) == 1 else torch.cat(groups, dim=1)

    def _reflect(self, signal: Tensor) -> Tensor:
        """Centre frame t on sample t * hop_length; by flips, as runtimes implement a reflecting pad as a gather."""
        left = self.config.n_fft // 2 - (self.config.n_fft - self.config.win_length) // 2
        right = self.config.win_length - left
        before, after = signal[:, 1 : left + 1], signal[:, -right - 1 : -1]
        return torch.cat([before.flip(1), signal, after.flip(1)], dim=1)
