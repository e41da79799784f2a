"""What every encoder shares: the contract, and the small modules at its two ends."""

from __future__ import annotations

from torch import Tensor, nn

from streamsplit_models.front_end import FrontEnd, Waveform

MAX_EMBEDDING_DIM = 8192


class Encoder(nn.Module):
    """Waveform (batch, window_samples) float32 in [-1, 1] -> unit-norm embedding (batch, embedding_dim).

    Each stage of an encoder is a module of its own, because cuts are named after module paths; `stages` lists
    their names in order. Raises ValueError if `embedding_dim` is not a valid size.
    """

    stages: tuple[str, ...] = ()

    def __init__(self, front_end: FrontEnd | Waveform, embedding_dim: int) -> None:
        whole = isinstance(embedding_dim, int) and not isinstance(embedding_dim, bool)
        if not whole or not 1 <= embedding_dim <= MAX_EMBEDDING_DIM:
            raise ValueError(
                f"embedding_dim is {embedding_dim!r}, must be a whole number from 1 to {MAX_EMBEDDING_DIM}"
            )
        super().__init__()
        self.front_end = front_end
        self.embedding_dim = embedding_dim

    @property
    def sample_rate(self) -> int:
        """Hz of the waveform."""
        return self.front_end.sample_rate

    @property
    def window_samples(self) -> int:
        """Samples of one window."""
        return self.front_end.window_samples

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, window_samples) float32 -> (batch, embedding_dim) float32 of unit norm."""
        x = waveform
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x


def input_norm() -> nn.BatchNorm2d:
    """Bring any front end's image to unit scale: one channel, hence one mean and one deviation."""
    return nn.BatchNorm2d(1, affine=False)


class GlobalAveragePool(nn.Module):
    """(batch, channels, mels, frames) -> (batch, channels), mean over mels and frames."""

    def forward(self, image: Tensor) -> Tensor:
        """Average the last two axes."""
        return image.mean(dim=(2, 3))


class GlobalMaxPool(nn.Module):
    """(batch, channels, mels, frames) -> (batch, channels), maximum over mels and frames."""

    def forward(self, image: Tensor) -> Tensor:
        """Maximum over the last two axes."""
        return image.amax(dim=(2, 3))


class Normalize(nn.Module):
    """(batch, features) -> the same direction with unit L2 norm; a zero vector stays zero."""

    def forward(self, features: Tensor) -> Tensor:
        """Divide each row by its norm."""
        return features / features.square().sum(dim=1, keepdim=True).clamp(min=1e-24).sqrt()
