"""Trains a bottleneck without labels, so that the embedding after the suffix stays the same.

    loss = 1 - cos(z, suffix(decode(encode(x)))) + ACTIVATION * distance of the activation + RATE * kilobytes

The suffix is not trained. Each step draws a width, so that one block serves all widths (docs/method.md, section 8). The
rate comes from a logistic law in each channel, whose spread is trained with the block. With an adversary
(`streamsplit_compile.bottleneck.hiding`) the loss also has what that one recognises.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime_edge.base.files import read_bounded, write_atomic
from runtime_edge.errors import FormatError
from streamsplit_compile.bottleneck.block import Bottleneck
from streamsplit_compile.bottleneck.hiding import HIDING, OWN_STEPS, Adversary, LabelledActivations

HIDDEN = 64
ACTIVATION = 0.1
RATE = 0.15
BATCH = 32
_LEARNING_RATE = 2e-3
_WARM_UP = 0.1
_KEPT_EVERY = 100
"""Steps between checkpoints."""
_MAX_CHECKPOINT_BYTES = 1 << 30


@dataclass(frozen=True)
class TrainingSet:
    """The data that a bottleneck is trained on, and the suffix."""

    activations: Tensor
    """(n, ...) float32, at the cut."""
    embeddings: Tensor
    """(n, d): the encoder's embeddings of the same windows."""
    suffix: Callable[[Tensor], Tensor]
    """Maps activations to embeddings; differentiable."""
    hidden: LabelledActivations | None = None
    """Recordings whose labels the latents should not tell."""
    noise: float = 0.0
    """Standard deviation of the noise that is added before rounding, in steps."""


class Trainer:
    """Trains one block, starting from the closed form; an interrupted run continues from its checkpoint."""

    def __init__(self, block: Bottleneck, data: TrainingSet, widths: Sequence[int], steps: int, seed: int) -> None:
        torch.manual_seed(seed)  # for the initial weights
        self.block = _with_network(block)
        self._data, self._widths, self._steps, self._seed = data, widths, steps, seed
        with torch.no_grad():
            latents = self.block.encode(data.activations[:256])
            spread = latents.std((0, 2, 3)) * 0.55 + 0.05  # a logistic law's scale from its standard deviation
        self._spread = nn.Parameter(spread.log())
        self._optimiser = torch.optim.Adam([*self.block.parameters(), self._spread], lr=_LEARNING_RATE)
        self._power = float(data.activations.square().mean()) or 1.0
        self.done = 0
        """Steps taken so far."""
        self._adversary = None
        if data.hidden is not None:
            random = torch.Generator().manual_seed(seed)
            self._adversary = Adversary(data.hidden, widths, block.layout.grid, random)

    def run(self, checkpoint: Path | None, progress: Callable[[int, int], None]) -> Bottleneck:
        """Train to the last step, continuing from the checkpoint file if it exists; None keeps no checkpoints."""
        if checkpoint is not None:
            self._resume(checkpoint)
        while self.done < self._steps:
            progress(self.done, self._steps)
            self._step()
            if checkpoint is not None and (self.done % _KEPT_EVERY == 0 or self.done == self._steps):
                self._keep(checkpoint)
        return self.block.eval()

    def _step(self) -> None:
        """Take one step; everything random in it follows from the seed and the step's number."""
        random = np.random.default_rng([self._seed, self.done])
        chosen = torch.from_numpy(random.integers(0, len(self._data.activations), BATCH))
        width = int(random.choice(self._widths))
        activations, embeddings = self._data.activations[chosen], self._data.embeddings[chosen]
        for group in self._optimiser.param_groups:
            group["lr"] = _LEARNING_RATE * _schedule((self.done + 1) / self._steps)
        latents = self._shipped(activations, width, random)
        noise = torch.from_numpy(random.uniform(-0.5, 0.5, tuple(latents.shape)).astype(np.float32))
        kilobytes = _bits(latents + noise, self._spread[:width].exp()) / 8000
        decoded = self.block.decode(widened(_rounded(latents), self.block.analysis.out_channels))
        away = 1 - functional.cosine_similarity(self._data.suffix(decoded), embeddings).mean()
        distance = (decoded - activations).square().mean() / self._power
        loss = away + ACTIVATION * distance + RATE * kilobytes
        if self._adversary is not None:
            loss = loss + HIDING * self._told(self._adversary, width, random)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.block.parameters(), 1.0)
        self._optimiser.step()
        self.done += 1

    def _told(self, adversary: Adversary, width: int, random: np.random.Generator) -> Tensor:
        """What the adversary recognises at a width, after it has learnt a little more."""
        for _ in range(OWN_STEPS):
            activations, labels = adversary.batch(random)
            with torch.no_grad():
                shipped = _rounded(self._shipped(activations, width, random))
            adversary.learn(shipped, labels)
        activations, _ = adversary.batch(random)
        return adversary.knowledge(_rounded(self._shipped(activations, width, random)))

    def _shipped(self, activations: Tensor, width: int, random: np.random.Generator) -> Tensor:
        """Latents (n, width, rows, columns) with their noise, before rounding."""
        latents = self.block.encode(activations)[:, :width]
        if not self._data.noise:
            return latents
        noise = random.standard_normal(tuple(latents.shape), np.float32)
        return latents + self._data.noise * torch.from_numpy(noise)

    def _state(self) -> dict[str, Any]:
        return {
            **({} if self._adversary is None else {"adversary": self._adversary.state()}),
            "block": self.block.state_dict(),
            "spread": self._spread.detach(),
            "optimiser": self._optimiser.state_dict(),
            "done": self.done,
        }

    def _keep(self, checkpoint: Path) -> None:
        written = io.BytesIO()
        torch.save(self._state(), written)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(checkpoint, written.getvalue())

    def _resume(self, checkpoint: Path) -> None:
        if not checkpoint.exists():
            return
        try:
            found = torch.load(
                io.BytesIO(read_bounded(checkpoint, _MAX_CHECKPOINT_BYTES, FormatError)), weights_only=True
            )
            self.block.load_state_dict(found["block"])
            self._optimiser.load_state_dict(found["optimiser"])
            self._spread.data.copy_(found["spread"])
            if self._adversary is not None:
                self._adversary.load(found["adversary"])
            self.done = int(found["done"])
        except Exception:  # a damaged file fails in as many ways as there are fields in it
            raise FormatError(f"{checkpoint}: not a checkpoint of this training; remove it to train anew") from None


def widened(latents: Tensor, channels: int) -> Tensor:
    """Latents (n, width, ...) padded with zeros to (n, channels, ...)."""
    return functional.pad(latents, (0, 0, 0, 0, 0, channels - latents.shape[1]))


def _rounded(latents: Tensor) -> Tensor:
    """Latents as they are shipped; the gradient passes straight through the rounding."""
    return latents + (latents.clamp(-128, 127).round() - latents).detach()


def _with_network(block: Bottleneck) -> Bottleneck:
    """The block with the network that training needs, which adds nothing yet."""
    found = Bottleneck(block.layout, block.analysis.out_channels, HIDDEN)
    found.load_state_dict({**found.state_dict(), **block.state_dict()})
    return found.train()


def _bits(values: Tensor, spread: Tensor) -> Tensor:
    """Bits of one window's rounded values (n, channels, ...) under a logistic law around 0 in each channel."""
    scaled = spread.view(1, -1, 1, 1)
    share = torch.sigmoid((values + 0.5) / scaled) - torch.sigmoid((values - 0.5) / scaled)
    return -torch.log2(share.clamp_min(1e-9)).sum((1, 2, 3)).mean()


def _schedule(done: float) -> float:
    """Share of the learning rate: it rises in the first steps, then falls to 0 along a cosine."""
    if done < _WARM_UP:
        return done / _WARM_UP
    return 0.5 * (1 + float(np.cos(np.pi * (done - _WARM_UP) / (1 - _WARM_UP))))
