"""Seeded starting weights, and activations that are well conditioned before any training.

A fresh network's batch-norm statistics (mean 0, variance 1) fit no data, and after global pooling all its
outputs point nearly the same way. `start` therefore passes a fixed set of synthetic sounds through once:
their statistics become the running statistics, and the projection is adjusted to spread their embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from streamsplit_models.encoder import Encoder, widths_kept

SETTLING_SOUNDS = 32

E = TypeVar("E", bound=Encoder)


def start(build: Callable[[], E], seed: int, inner: Mapping[str, int] | None = None) -> E:
    """Build an encoder, give it seeded weights and settled statistics; returned in eval mode.

    `inner` has the layers that keep only their first so many inner channels (`Encoder.inner_layers`). Depends on its
    arguments alone, and leaves torch's global generator and thread count as they were. Raises ValueError for an
    `inner` that the encoder cannot have.
    """
    with torch.random.fork_rng(devices=[]):
        encoder = build()
    generator = torch.Generator().manual_seed(seed)
    he_initialise(encoder, generator)
    settle_on_synthetic(encoder, seed)
    encoder.keep_channels(widths_kept(encoder.inner_layers(), inner))
    return encoder


def settle_on_synthetic(encoder: Encoder, seed: int) -> None:
    """`settle` on seeded synthetic sounds; the encoder is left in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with _one_thread():
        rate, samples = encoder.sample_rate, encoder.window_samples
        settle(encoder, synthetic_sounds(SETTLING_SOUNDS, rate, samples, generator))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run on one thread: threads split sums differently, so the last bits depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def he_initialise(module: nn.Module, generator: torch.Generator) -> None:
    """He et al. 2015 for convolutions (fan in), 1/sqrt(fan in) for linear layers, zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def settle(encoder: Encoder, sounds: Tensor) -> None:
    """Set running statistics on sounds (batch, window_samples), and adjust `encoder.projection` if there is one."""
    norms = [layer for layer in encoder.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in norms]
    encoder.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average: after one pass, the statistics of that pass
        layer.train()
    encoder(sounds)
    encoder.eval()
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    if isinstance(projection := getattr(encoder, "projection", None), nn.Linear):
        pooled: list[Tensor] = []
        hook = projection.register_forward_pre_hook(lambda _module, inputs: pooled.append(inputs[0]))
        encoder(sounds)
        hook.remove()
        _spread(projection, pooled[0])


def _spread(projection: nn.Linear, pooled: Tensor) -> None:
    """Remove the mean of pooled (sounds, features) from the projection and shrink its strongest directions.

    Otherwise loudness and spectral tilt alone would dominate every cosine; this is ridge-regularised whitening.
    """
    mean = pooled.double().mean(dim=0)
    _, singular, directions = torch.linalg.svd(pooled.double() - mean, full_matrices=False)
    ridge = singular.square().mean()
    loss = 1 - (ridge / (singular.square() + ridge)).sqrt()
    weight = projection.weight.double()
    weight = weight - weight @ directions.T @ (loss.unsqueeze(1) * directions)
    projection.weight.copy_(weight)
    projection.bias.copy_(-weight @ mean)


def synthetic_sounds(count: int, sample_rate: int, samples: int, generator: torch.Generator) -> Tensor:
    """Sounds of four kinds in turn, at -40 to 0 dBFS peak: (count, samples) float32.

    Noise with a random spectral tilt, harmonic tones, chirps and click trains, each over a faint noise floor. Every
    eighth is digital silence: padded recordings are full of it, and without it in the statistics a deep network would
    blow it up.
    """
    time = torch.arange(samples) / sample_rate
    kinds = (_noise, _tone, _chirp, _clicks)
    sounds = torch.stack([kinds[i % len(kinds)](time, generator) for i in range(count)])
    sounds = sounds / sounds.abs().amax(dim=1, keepdim=True)
    level = 10 ** (-2 * torch.rand(count, 1, generator=generator))
    floor = 1e-4 * torch.randn(count, samples, generator=generator)
    mixed = (sounds * level + floor).clamp(-1, 1)
    mixed[::8] = 0.0
    return mixed


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _noise(time: Tensor, generator: torch.Generator) -> Tensor:
    white = torch.fft.rfft(torch.randn(len(time), generator=generator))
    tilt = torch.arange(1, len(white) + 1).pow(-_uniform(0.0, 1.5, generator))
    noise: Tensor = torch.fft.irfft(white * tilt, n=len(time))
    return noise


def _tone(time: Tensor, generator: torch.Generator) -> Tensor:
    pitch = 80 * 2 ** _uniform(0.0, 5.0, generator)
    tremolo = 1 + 0.8 * torch.sin(2 * math.pi * _uniform(1.0, 12.0, generator) * time)
    return tremolo * sum((torch.sin(2 * math.pi * pitch * k * time) / k for k in range(1, 6)), torch.zeros(()))


def _chirp(time: Tensor, generator: torch.Generator) -> Tensor:
    start_hz, end_hz = _uniform(200.0, 4000.0, generator), _uniform(200.0, 4000.0, generator)
    duration = float(time[-1])
    return torch.sin(2 * math.pi * (start_hz + (end_hz - start_hz) * time / (2 * duration)) * time)


def _clicks(time: Tensor, generator: torch.Generator) -> Tensor:
    since = torch.remainder(time + _uniform(0.0, 1.0, generator), 1 / _uniform(1.0, 10.0, generator))
    decay = torch.exp(-since * _uniform(20.0, 200.0, generator))
    return decay * torch.randn(len(time), generator=generator)
