"""What feature extractors of the `transformers` library do beside the log-mel itself."""

from __future__ import annotations

from torch import Tensor, nn


class ASTFrames(nn.Module):
    """Cut or pad a log-mel image to AST's number of frames, time first; padding is a log-mel of zero."""

    def __init__(self, frames: int, padding: float) -> None:
        super().__init__()
        self.frames = frames
        self.padding = padding

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 1, mels, frames) -> (batch, max_length, mels)."""
        image = image.squeeze(1)[:, :, : self.frames]
        missing = self.frames - image.shape[2]
        return nn.functional.pad(image, (0, missing), value=self.padding).transpose(1, 2)


class Standardize(nn.Module):
    """Zero mean and unit variance over each window, with wav2vec 2.0's 1e-7 under the root."""

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, samples) -> (batch, samples)."""
        centred = waveform - waveform.mean(dim=1, keepdim=True)
        return centred / (centred.square().mean(dim=1, keepdim=True) + 1e-7).sqrt()
