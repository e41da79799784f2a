"""Restores the log-mel image, and from it sound, of what leaves a device.

    inverter = train_inverter(values, images, train, choosing, seed)
    restored = invert(inverter, values)                    # (n, mels, frames)
    sound = sound_of(restored[0], front_end, seed)         # Griffin-Lim (1984)

An attacker learns from recordings of other people, of which it has both sides. Of a bottleneck's widest latent this
bounds the narrower ones, which are its first channels.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import torch
from pystoi import stoi
from torch import Tensor, nn
from torch.nn import functional

from runtime_edge.formats.encoder.log_mel_info import LogMelInfo
from runtime_edge.inference.mel_matrices import hann, mel_bank
from streamsplit_compile.audit.early_stopping import train_until_worse
from streamsplit_compile.audit.outlets import Array

_BATCH, _RATE = 32, 2e-3
_CHANNELS, _PATCH = 48, 4
_ROUNDS = 60
"""Of Griffin-Lim, and of the updates before it."""
Flags = npt.NDArray[np.bool_]


class Inverter(nn.Module):
    """From images or vectors (n, channels, rows, columns) to log-mel images (n, mels, frames), both standardised.

    What arrived is spread over a grid of patches of 4 x 4 values, over which convolutions run.
    """

    def __init__(self, shape: tuple[int, int, int], image: tuple[int, int]) -> None:
        super().__init__()
        channels, rows, columns = shape
        self.image = image
        self.grid = -(-image[0] // _PATCH), -(-image[1] // _PATCH)
        self.spread: nn.Module
        if rows * columns == 1:
            first = max(1, self.grid[0] // 4), max(1, self.grid[1] // 4)
            self.spread = nn.Sequential(
                nn.Flatten(), nn.Linear(channels, 16 * first[0] * first[1]), nn.Unflatten(1, (16, *first)),
                nn.Conv2d(16, _CHANNELS, 1),
            )  # fmt: skip
        else:  # patches of what arrived, so that a large image loses nothing
            high, wide = max(1, rows // self.grid[0]), max(1, columns // self.grid[1])
            self.spread = nn.Conv2d(channels, _CHANNELS, (high, wide), (high, wide))
        self.body = nn.Sequential(
            nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1), nn.BatchNorm2d(_CHANNELS), nn.ReLU(),
            nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1), nn.BatchNorm2d(_CHANNELS), nn.ReLU(),
        )  # fmt: skip
        self.patches = nn.Conv2d(_CHANNELS, _PATCH * _PATCH, 3, padding=1)
        self.shuffle = nn.PixelShuffle(_PATCH)

    def forward(self, values: Tensor) -> Tensor:
        """The images (n, mels, frames) that what arrived was probably made of."""
        spread = functional.interpolate(self.spread(values), self.grid, mode="bilinear", align_corners=False)
        image: Tensor = self.shuffle(self.patches(spread + self.body(spread)))[:, 0]
        return image[:, : self.image[0], : self.image[1]]


def train_inverter(values: Array, images: Array, train: Flags, choosing: Flags, seed: int) -> Inverter:
    """An inverter trained on some windows, as it was after the epoch with the smallest error on `choosing`.

    `values` are (n, channels, rows, columns), `images` (n, mels, frames).
    """
    given, wanted = torch.from_numpy(values), torch.from_numpy(images)
    random = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inverter = Inverter(values.shape[1:], images.shape[1:])
        optimiser = torch.optim.AdamW(inverter.parameters(), _RATE)

        def loss(batch: Tensor) -> Tensor:
            return functional.mse_loss(inverter(given[batch]), wanted[batch])

        def quality() -> float:
            return -float(np.square(invert(inverter, values[choosing]) - images[choosing]).mean())

        train_until_worse(inverter, np.flatnonzero(train), _BATCH, optimiser, random, loss, quality)
    return inverter


def invert(inverter: Inverter, values: Array) -> Array:
    """Images (n, mels, frames) of values (n, channels, rows, columns)."""
    inverter.eval()
    with torch.inference_mode():
        found = [inverter(part) for part in torch.split(torch.from_numpy(values), 256)]
    return np.asarray(torch.cat(found).numpy())


def sound_of(image: Array, info: LogMelInfo, sample_rate: int, seed: int) -> Array:
    """Sound (samples,) at the raised rate, `sample_rate` times `info.upsample`, of a log-mel image (mels, frames).

    The spectrum is fitted to the image's bands by multiplicative updates (Lee and Seung 2000); its phases come from
    Griffin and Lim's algorithm (1984), begun at random.
    """
    power = np.exp(np.clip((image.astype(np.float64) - info.offset) / info.scale, -50, 50))
    power = np.maximum(power - info.eps if info.log == "offset" else power, 0.0)
    bank = mel_bank(info, sample_rate)
    spectrum = np.ones((bank.shape[1], power.shape[1]))
    for _ in range(_ROUNDS):
        spectrum *= bank.T @ (power / (bank @ spectrum + 1e-30)) / (bank.sum(0)[:, None] + 1e-12)
    wanted = torch.from_numpy((spectrum ** (1 / info.power)).astype(np.float32))
    padded = np.zeros(info.n_fft)
    before = (info.n_fft - info.win_length) // 2
    padded[before : before + info.win_length] = hann(info)
    window = torch.from_numpy(padded.astype(np.float32))
    random = np.random.default_rng(seed)
    phases = torch.from_numpy(random.uniform(-np.pi, np.pi, wanted.shape).astype(np.float32))
    found = torch.polar(wanted, phases)
    for _ in range(_ROUNDS):
        sound = torch.istft(found, info.n_fft, info.hop_length, window=window)
        again = torch.stft(sound, info.n_fft, info.hop_length, window=window, return_complex=True)
        found = torch.polar(wanted, again.angle())
    audio = torch.istft(found, info.n_fft, info.hop_length, window=window).numpy()
    late = 0 if info.center else info.win_length // 2  # where frame 0 is centred
    audio = np.concatenate([np.zeros(late, np.float32), audio])
    if not info.preemphasis:
        return np.asarray(audio, np.float32)
    for place in range(1, len(audio)):
        audio[place] += info.preemphasis * audio[place - 1]
    return np.asarray(audio, np.float32)


def intelligibility(heard: Array, spoken: Array, rate: int) -> float | None:
    """STOI (Taal et al. 2011) of restored sound against the recording, both (samples,) at `rate`, Hz.

    None if the recording has too little speech for it, 0.4 s.
    """
    length = min(len(heard), len(spoken))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return float(np.clip(stoi(spoken[:length], heard[:length], rate), -1.0, 1.0))
        except (RuntimeWarning, ValueError):
            return None
