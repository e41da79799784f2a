"""Second views of activations: masks, gain, noise, low-level mixing (docs/method.md, section 5; ours).

Only the activation reaches the server, so views are made from it and not from the waveform. The meaning of each axis
follows from the rank: [B, C, F, T] feature maps, [B, T, D] token sequences, [B, S] waveforms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime_edge.errors import UsageError


@dataclass(frozen=True)
class AugmentConfig:
    """The strength of each augmentation; 0 turns it off. Shares are of an axis, drawn uniformly up to the value."""

    time_mask: float = 0.3
    """Longest masked share of the time axis."""
    frequency_mask: float = 0.3
    """Longest masked share of the frequency axis (rank 4)."""
    gain_db: float = 3.0
    """The gain is between minus and plus this many dB."""
    noise: float = 0.1
    """Standard deviation of the noise, as a share of the sample's own."""
    mix: float = 0.1
    """Largest share of another sample of the batch that is mixed in."""
    shift: float = 0.1
    """Longest circular shift, as a share of the waveform (rank 2)."""

    def __post_init__(self) -> None:
        """Raise UsageError, naming the field, for a negative strength or a share above 1."""
        for name, value in vars(self).items():
            limit = float("inf") if name in ("gain_db", "noise") else 1.0
            if not (0 <= value <= limit and value < float("inf")):
                raise UsageError(f"augment {name}: {value} is out of range")


def augment(
    activations: Tensor,
    generator: torch.Generator,
    config: AugmentConfig | None = None,
    waveform: bool = False,
) -> Tensor:
    """A second view of each activation of [B, ...], same shape, dtype and device; the input is unchanged.

    Rank 4 is [B, C, F, T], rank 3 [B, T, D], rank 2 [B, S] if `waveform` is true; any other activation (such as a
    pooled vector) has no axis to mask and only gets gain, noise and mixing. Each sample is augmented independently.
    `generator` is on the CPU: same seed, same views.
    """
    config = config or AugmentConfig()
    view = activations.float()
    view = _mix(view, config.mix, generator)
    decibels = config.gain_db * (2 * _uniform(view, generator) - 1)
    view = view * 10 ** (decibels / 20)
    if activations.ndim == 4:
        view = _mask(view, 2, config.frequency_mask, generator)
        view = _mask(view, 3, config.time_mask, generator)
    elif activations.ndim == 3 or (activations.ndim == 2 and waveform):
        if waveform:
            view = _shift(view, config.shift, generator)
        view = _mask(view, 1, config.time_mask, generator)
    largest = torch.finfo(activations.dtype).max  # a gain may exceed float16's range
    return _noise(view, config.noise, generator).clamp(-largest, largest).to(activations.dtype)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """One number in [0, 1) for each sample, shaped to broadcast over `like`."""
    drawn = torch.rand(len(like), generator=generator).to(like)
    return drawn.reshape(-1, *[1] * (like.ndim - 1))


def _inner(x: Tensor) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def _mix(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    other = x[torch.randperm(len(x), generator=generator).to(x.device)]
    return torch.lerp(x, other, share * _uniform(x, generator))


def _noise(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    scale = x.std(dim=_inner(x), correction=0, keepdim=True)
    return x + strength * scale * torch.randn(x.shape, generator=generator).to(x)


def _shift(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    length = x.shape[1]
    offsets = ((2 * _uniform(x, generator) - 1) * share * length).round().long()
    positions = (torch.arange(length, device=x.device) - offsets) % length
    return x.gather(1, positions)


def _mask(x: Tensor, axis: int, share: float, generator: torch.Generator) -> Tensor:
    """Replace a stretch of `axis` in each sample, up to `share` of its length, with the sample's mean."""
    length = x.shape[axis]
    width = (share * length * _uniform(x, generator)).round()
    start = (_uniform(x, generator) * (length - width + 1)).floor()
    shape = [1] * x.ndim
    shape[axis] = length
    position = torch.arange(length, device=x.device).reshape(shape)
    hidden = (position >= start) & (position < start + width)
    return torch.where(hidden, x.mean(dim=_inner(x), keepdim=True), x)
