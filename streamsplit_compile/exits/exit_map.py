"""An exit in torch: from an activation to the embedding that the whole encoder makes.

    layout = exit_layout(cut)                     # None where the cut's activation can have none
    block = ExitMap(layout, rank=64, dim=384, unit=True)
    block(activations)                            # (n, d)

An activation is seen as an image (channels, rows, columns): of a log-mel the rows are frequencies, the columns times.
Of each channel in each of a few bands of rows the mean and the deviation over time are taken. What is behind is linear,
in two layers with few values between them, so that the file stays small.
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
"""Values between the two layers, at most."""
LEAST_BANDS = 8
"""Of rows, where there are as many."""
FEATURES = 1024
"""More bands, up to so many statistics."""
MOST_FEATURES = 4096
_EPSILON = 1e-6
"""Keeps the root of a variance near 0 from growing rounding errors."""


def exit_layout(cut: Cut) -> Layout | None:
    """How a cut's activations are seen; None for the waveform, and for what is no image or sequence or too wide."""
    if cut.index == 0 or cut.shape[0] != 1 or len(cut.shape) not in (2, 3, 4) or cut.int8 is None:
        return None
    layout = Layout(cut.shape, 1 if len(cut.shape) != 3 else cut.int8.axis, (1, 1))
    return layout if features_of(layout) <= MOST_FEATURES else None


def bands_of(layout: Layout) -> int:
    """In how many bands of rows statistics are taken."""
    channels, rows, columns = layout.image
    fitting = FEATURES // (channels * _kinds(columns))
    return min(rows, max(LEAST_BANDS, fitting))


def features_of(layout: Layout) -> int:
    """How many statistics there are."""
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
        """(n, features) of activations (n, ...)."""
        image = padded_image(self.layout, activations)
        mean = image.mean(3)
        found = [mean @ self.bands]
        if self.layout.image[2] > 1:
            variance = (image - mean.unsqueeze(3)).square().mean(3) @ self.bands
            found.append((variance + _EPSILON).sqrt())
        return torch.cat(found, 1).flatten(1)

    def from_statistics(self, statistics: Tensor) -> Tensor:
        """Embeddings (n, d) of statistics (n, features)."""
        found: Tensor = self.outer(self.inner(statistics))
        return functional.normalize(found, dim=1) if self.unit else found

    def forward(self, activations: Tensor) -> Tensor:
        """Embeddings (n, d) of activations (n, ...)."""
        return self.from_statistics(self.statistics(activations))

    @property
    def macs(self) -> int:
        """Multiply-adds of one window."""
        values = self.layout.image[0] * self.layout.image[1] * self.layout.image[2]
        return 2 * values + self.inner.weight.numel() + self.outer.weight.numel()

    def to_bytes(self) -> bytes:
        """The weights with their layout, as arrays of NumPy; deterministic."""
        arrays = {name: value.detach().numpy().astype("<f4") for name, value in self.state_dict().items()}
        written = io.BytesIO()
        np.savez(written, layout=np.array([self.layout.axis, self.unit], "<i4"), **arrays)
        return written.getvalue()


def read_exit(data: bytes, cut: Cut, where: str) -> ExitMap:
    """The exit that `to_bytes` wrote, for activations of the cut. Raises BundleError."""
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
    """Statistics of each band: mean and deviation, or of single values the mean alone."""
    return 2 if columns > 1 else 1
