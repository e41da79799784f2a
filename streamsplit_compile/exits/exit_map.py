"""An exit in torch: from an activation to the embedding that the whole encoder makes.

    layout = exit_layout(cut)                     # None if the cut's activation cannot have one
    block = ExitMap(layout, rank=64, dim=384, unit=True)
    block(activations)                            # (n, d)

An activation is treated as an image (channels, rows, columns): a log-mel's rows are frequencies, its columns times. The
rows are divided into a few bands, and each channel's mean and deviation over time are taken in each band. Two linear
layers follow, with few values between them so that the file stays small.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime_edge.errors import BundleError
from runtime_edge.formats.manifest import Cut
from streamsplit_compile.bottleneck.block import Layout, padded_image

RANK = 64
"""The most values between the two layers."""
LEAST_BANDS = 8
"""The fewest bands of rows, unless there are fewer rows."""
FEATURES = 1024
"""The number of statistics up to which more bands are used."""
MOST_FEATURES = 4096
_EPSILON = 1e-6
"""Keeps the root of a variance near 0 from amplifying rounding errors."""


def exit_layout(cut: Cut) -> Layout | None:
    """The layout for a cut's activations; None for the waveform, and for what is no image or sequence or too wide."""
    if cut.index == 0 or cut.shape[0] != 1 or len(cut.shape) not in (2, 3, 4) or cut.int8 is None:
        return None
    layout = Layout(cut.shape, 1 if len(cut.shape) != 3 else cut.int8.axis, (1, 1))
    return layout if features_of(layout) <= MOST_FEATURES else None


def bands_of(layout: Layout) -> int:
    """The number of bands of rows in which statistics are taken."""
    channels, rows, columns = layout.image
    fitting = FEATURES // (channels * _kinds(columns))
    return min(rows, max(LEAST_BANDS, fitting))


def features_of(layout: Layout) -> int:
    """The number of statistics."""
    channels, _, columns = layout.image
    return channels * bands_of(layout) * _kinds(columns)


class ExitMap(nn.Module):
    """The exit of one cut, for embeddings of `dim` values, of unit norm if `unit`."""

    bands: Tensor

    def __init__(self, layout: Layout, rank: int, dim: int, unit: bool) -> None:
        super().__init__()
        self.layout, self.unit = layout, unit
        _, rows, _ = layout.image
        place = torch.arange(rows) * bands_of(layout) // rows
        members = functional.one_hot(place).float()
        self.register_buffer("bands", members / members.sum(0), persistent=False)
        self.inner = nn.Linear(features_of(layout), rank)
        self.outer = nn.Linear(rank, dim)

    def statistics(self, activations: Tensor) -> Tensor:
        """The statistics (n, features) of activations (n, ...)."""
        image = padded_image(self.layout, activations)
        mean = image.mean(3)
        found = [mean @ self.bands]
        if self.layout.image[2] > 1:
            variance = (image - mean.unsqueeze(3)).square().mean(3) @ self.bands
            found.append((variance + _EPSILON).sqrt())
        return torch.cat(found, 1).flatten(1)

    def from_statistics(self, statistics: Tensor) -> Tensor:
        """Embeddings (n, d) from statistics (n, features)."""
        found: Tensor = self.outer(self.inner(statistics))
        return functional.normalize(found, dim=1) if self.unit else found

    def forward(self, activations: Tensor) -> Tensor:
        """Embeddings (n, d) from activations (n, ...)."""
        return self.from_statistics(self.statistics(activations))

    @property
    def macs(self) -> int:
        """Multiply-adds of one window."""
        values = self.layout.image[0] * self.layout.image[1] * self.layout.image[2]
        return 2 * values + self.inner.weight.numel() + self.outer.weight.numel()

    def to_bytes(self) -> bytes:
        """The weights with their layout, as NumPy arrays; deterministic."""
        arrays = {name: value.detach().numpy().astype("<f4") for name, value in self.state_dict().items()}
        written = io.BytesIO()
        np.savez(written, layout=np.array([self.layout.axis, self.unit], "<i4"), **arrays)
        return written.getvalue()


def read_exit(data: bytes, cut: Cut, where: str) -> ExitMap:
    """Read an exit that `to_bytes` wrote for activations of this cut. Raises BundleError."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            arrays = {name: np.asarray(stored[name]) for name in stored.files}
        axis, unit = arrays.pop("layout").tolist()
        dim, rank = arrays["outer.weight"].shape
        block = ExitMap(Layout(cut.shape, axis, (1, 1)), rank, dim, bool(unit))
        block.load_state_dict({name: torch.from_numpy(value.astype(np.float32)) for name, value in arrays.items()})
    except Exception as exc:  # a damaged file fails in as many ways as there are arrays in it
        raise BundleError(f"{where}: not an exit for cut {cut.name} ({type(exc).__name__}); compile it again") from None
    if not all(bool(torch.isfinite(value).all()) for value in block.state_dict().values()):
        raise BundleError(f"{where}: weights of the exit at {cut.name} are not finite; compile it again")
    return block.eval()


def _kinds(columns: int) -> int:
    """Number of statistics for each band: mean and deviation, or only the mean if there is a single column."""
    return 2 if columns > 1 else 1
