"""A generation's blocks, optimised for many windows at once; they compute the same function.

Work on the weights that does not depend on the data is done once (batch norms are folded into the convolutions), and
images are in the channels-last layout that convolutions prefer. Measured for MobileNetV3-Small after its middle cut,
one thread, 32 windows at once: 1.4 times the windows of the plain graph. bfloat16 gave another factor of 1.1 on a
processor with its instructions (AVX-512). `torch.compile` gave less and needs a minute and a compiler.

A block is recorded as TorchScript if that gives the same results. Alone it is hardly faster, but a graph module takes
the GIL at each of a hundred operations, and each time waits for the threads that receive frames and answer them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import fx

from streamsplit_compile.encoder.segment import by_channels
from streamsplit_compile.lowering.fx_folding import fold
from streamsplit_compile.lowering.weight_program import separate

RunBlock = Callable[[torch.Tensor], object]
Precision = Literal["float32", "bfloat16"]
"""The first block always runs in float32: bfloat16 preserves too little of a quiet sound's spectrum."""


class ServedBlocks:
    """Completes activations with consecutive segments of one encoder. Their weights are copied when first needed."""

    def __init__(self, segments: Sequence[fx.GraphModule], precision: Precision = "float32") -> None:
        self._segments, self._precision = segments, precision
        self._blocks: dict[int, RunBlock] = {}

    def complete(self, cut: int, activations: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, d) float32 of activations (n * rows, ...) float32 at a cut, without gradients.

        An encoder that was exported for a batch of one is run window by window.
        """
        with torch.inference_mode():
            rows = self._segments[cut].meta["rows"] if cut < len(self._segments) else None
            parts = [activations] if rows is None else torch.split(activations, rows)
            return torch.cat([self._chain(cut, part) for part in parts])

    def _chain(self, cut: int, activation: torch.Tensor) -> torch.Tensor:
        for index in range(cut, len(self._segments)):
            activation = self._run(index, by_channels(activation))
        return activation

    def _run(self, index: int, activation: torch.Tensor) -> torch.Tensor:
        lower = self._precision == "bfloat16" and index > 0
        optimized = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]  # it would take a second first
        with optimized, torch.autocast("cpu", torch.bfloat16, lower, cache_enabled=False):
            if index not in self._blocks:
                segment = self._segments[index]
                self._blocks[index] = record_block(separate(fold(segment), ())[0], activation, segment.meta["rows"])
            return _tensor(self._blocks[index](activation)).float()


def record_block(block: fx.GraphModule, activation: torch.Tensor, rows: int | None) -> RunBlock:
    """The block as TorchScript, or unchanged if it cannot be recorded or gives other results for more windows."""
    doubled = activation if rows is not None else torch.cat([activation, activation])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes that it treats as constants, and about its deprecation
            recorded: RunBlock = torch.jit.trace(block, activation, check_trace=False)  # type: ignore[no-untyped-call]
        same = torch.equal(_tensor(recorded(doubled)), _tensor(block(doubled)))
    except RuntimeError:  # it cannot be traced
        return block
    return recorded if same else block


def _tensor(value: object) -> torch.Tensor:
    assert isinstance(value, torch.Tensor)
    return value
