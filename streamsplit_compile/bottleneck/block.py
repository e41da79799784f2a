"""A bottleneck in torch: activation to latent and back.

    layout = layout_of(cut)                       # None if the cut's activation cannot have one
    block = Bottleneck(layout, channels=32, hidden=0)
    block.decode(block.encode(activations))

An activation is treated as an image and cut into patches; one strided convolution turns each patch into one value in
every channel of the latent. The decoder is the linear map back to patches plus, if it is trained, the output of a small
convolutional network over the latent. One block serves every width: a narrower latent has zeros in its last channels.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime_edge.errors import BundleError
from runtime_edge.formats.encoder.bottleneck_info import MAX_LATENT_VALUES
from runtime_edge.formats.manifest import Cut

MAX_PATCH_VALUES = 1024
_CHANNELS, _MANY_CHANNELS = 64, 128
"""The most channels of a latent; the second number is for large patches, of which the first would keep too little."""
_LARGE_PATCH = 512
"""The fewest values of a large patch."""
_ROWS = (8, 16, 32, 64, 128)
"""Limits to a latent's rows and columns; the smallest limit at which patches are small enough is used."""
_FEWER_ROWS = 4
"""The limit if patches would be single positions: neighbours are correlated, which only larger patches can use."""


@dataclass(frozen=True)
class Layout:
    """How an activation is cut into patches."""

    shape: tuple[int, ...]
    """Shape of the activation of one window, with its batch axis of 1."""
    axis: int
    """The axis of its channels."""
    patch: tuple[int, int]
    """Rows and columns of one patch."""

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, rows and columns."""
        others = [size for axis, size in enumerate(self.shape) if axis not in (0, self.axis)]
        rows, columns = ([1] * (2 - len(others)) + others)[:2]
        return self.shape[self.axis], rows, columns

    @property
    def grid(self) -> tuple[int, int]:
        """How many rows and columns of patches there are."""
        _, rows, columns = self.image
        return -(-rows // self.patch[0]), -(-columns // self.patch[1])

    @property
    def patch_values(self) -> int:
        """How many values one patch has, over all channels."""
        return self.image[0] * self.patch[0] * self.patch[1]


def layout_of(cut: Cut) -> Layout | None:
    """The layout for a cut's activations; None for the waveform, for activations that are neither image nor sequence,
    and if patches would be too large.
    """
    if cut.index == 0 or cut.shape[0] != 1 or len(cut.shape) not in (2, 3, 4) or cut.int8 is None:
        return None
    return layout_with(cut.shape, 1 if len(cut.shape) != 3 else cut.int8.axis)


def layout_with(shape: tuple[int, ...], axis: int) -> Layout | None:
    """The layout for activations of one window of this shape, whose channels are on this axis."""
    for most in _ROWS:
        found = _patched(shape, axis, most)
        if found.patch_values <= MAX_PATCH_VALUES:
            return _patched(shape, axis, _FEWER_ROWS) if found.patch == (1, 1) else found
    return None


def _patched(shape: tuple[int, ...], axis: int, most: int) -> Layout:
    """The layout with the smallest patches that make at most `most` rows and `most` columns."""
    _, rows, columns = Layout(shape, axis, (1, 1)).image
    return Layout(shape, axis, (-(-rows // most), -(-columns // most)))


def channels_of(layout: Layout) -> int:
    """The most channels that latents of a layout can have."""
    positions = layout.grid[0] * layout.grid[1]
    many = layout.patch_values >= _LARGE_PATCH and positions * _MANY_CHANNELS <= MAX_LATENT_VALUES
    return min(_MANY_CHANNELS if many else _CHANNELS, layout.patch_values, MAX_LATENT_VALUES // positions)


class Bottleneck(nn.Module):
    """Encoder and decoder of one cut. A latent's value of 1 is one step of its quantiser.

    `hidden` is the width of the network that adds to the linear decoder; 0 for none.
    """

    def __init__(self, layout: Layout, channels: int, hidden: int = 0) -> None:
        super().__init__()
        self.layout = layout
        self.analysis = nn.Conv2d(layout.image[0], channels, layout.patch, layout.patch)
        self.synthesis = nn.Linear(channels, layout.patch_values)
        self.hidden: nn.Module | None = None
        if hidden:
            self.hidden = nn.Sequential(
                nn.Conv2d(channels, hidden, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(hidden, hidden, 3, padding=1),
                nn.ReLU(),
            )
            self.refinement = nn.Linear(hidden, layout.patch_values, bias=False)
            nn.init.zeros_(self.refinement.weight)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Shape of one window's latent: (1, channels, rows, columns)."""
        return (1, self.analysis.out_channels, *self.layout.grid)

    def forward(self, activations: Tensor) -> Tensor:
        """The part that a device runs: `encode`."""
        return self.encode(activations)

    def encode(self, activations: Tensor) -> Tensor:
        """Encode activations (n, ...) as latents (n, channels, rows, columns), not yet rounded."""
        latents: Tensor = self.analysis(padded_image(self.layout, activations))
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (n, channels, rows, columns) to activations (n, ...)."""
        patches: Tensor = self.synthesis(latents.permute(0, 2, 3, 1))
        if self.hidden is not None:
            patches = patches + self.refinement(self.hidden(latents).permute(0, 2, 3, 1))
        channels, rows, columns = self.layout.image
        high, wide = self.layout.patch
        up, across = self.layout.grid
        image = patches.reshape(-1, up, across, channels, high, wide).permute(0, 3, 1, 4, 2, 5)
        image = image.reshape(-1, channels, up * high, across * wide)[:, :, :rows, :columns]
        if len(self.layout.shape) == 3:
            image = image.squeeze(2)
            image = image if self.layout.axis == 1 else image.transpose(1, 2)
        return image.reshape(-1, *self.layout.shape[1:])

    def to_bytes(self) -> bytes:
        """The weights with their layout, as NumPy arrays; deterministic."""
        arrays = {name: value.detach().numpy().astype("<f4") for name, value in self.state_dict().items()}
        written = io.BytesIO()
        np.savez(written, layout=np.array([self.layout.axis, *self.layout.patch], "<i4"), **arrays)
        return written.getvalue()


def read_bottleneck(data: bytes, cut: Cut, where: str) -> Bottleneck:
    """Read a block that `to_bytes` wrote for activations of this cut. Raises BundleError."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            arrays = {name: np.asarray(stored[name]) for name in stored.files}
        axis, *patch = arrays.pop("layout").tolist()
        channels = arrays["analysis.weight"].shape[0]
        hidden = arrays["refinement.weight"].shape[1] if "refinement.weight" in arrays else 0
        block = Bottleneck(Layout(cut.shape, axis, tuple(patch)), channels, hidden)
        block.load_state_dict({name: torch.from_numpy(value.astype(np.float32)) for name, value in arrays.items()})
    except Exception as exc:  # a damaged file fails in as many ways as there are arrays in it
        raise BundleError(
            f"{where}: not a bottleneck for cut {cut.name} ({type(exc).__name__}); compile it again"
        ) from None
    if not all(bool(torch.isfinite(value).all()) for value in block.state_dict().values()):
        raise BundleError(f"{where}: weights of the bottleneck at {cut.name} are not finite; compile it again")
    return block.eval()


def padded_image(layout: Layout, activations: Tensor) -> Tensor:
    """Activations (n, ...) as images (n, channels, rows, columns), padded at the end with zeros to whole patches."""
    channels, rows, columns = layout.image
    if len(layout.shape) == 3:
        image = (activations if layout.axis == 1 else activations.transpose(1, 2)).unsqueeze(2)
    else:
        image = activations.reshape(-1, channels, rows, columns) if len(layout.shape) == 2 else activations
    down, right = layout.grid[0] * layout.patch[0] - rows, layout.grid[1] * layout.patch[1] - columns
    return functional.pad(image, (0, right, 0, down)) if down or right else image
