"""Running any prefix of the encoder: one session for each block, chained through buffers allocated once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from runtime_edge.backend import Array, LoadedBlock, RuntimeOptions, open_backend
from runtime_edge.bundle import Bundle
from runtime_edge.errors import SelfTestError, UsageError
from runtime_edge.selftest import probe_waveform


class Prefix:
    """The encoder as a chain of blocks. `start` takes a window, `advance` runs up to a cut.

    Blocks are loaded when a cut first needs them and stay loaded, so that switching cuts costs nothing.
    """

    def __init__(self, bundle: Bundle, variant: str = "onnx-fp32", threads: int = 1) -> None:
        """Raises BundleError when the bundle has no such variant."""
        info = bundle.manifest.info
        formats = {bundle.manifest.variant(block, variant).format for block in info.blocks}
        self.backend = open_backend(formats.pop(), RuntimeOptions(threads))
        self.bundle = bundle
        self.variant = variant
        self.buffers: list[Array] = [np.zeros(cut.shape, np.float32) for cut in info.cuts]
        self._blocks: list[LoadedBlock | None] = [None] * len(info.blocks)
        self._done = 0

    @property
    def last_cut(self) -> int:
        """Index of the cut behind the whole encoder."""
        return len(self._blocks)

    def start(self, window: Array) -> None:
        """Take a window of shape (samples,) float32. Raises UsageError for another length."""
        if window.shape != self.buffers[0].shape[1:]:
            raise UsageError(f"window of shape {window.shape}; this encoder takes {self.buffers[0].shape[1:]}")
        self.buffers[0][0] = window
        self._done = 0

    def advance(self, cut: int) -> Array:
        """Run the blocks up to `cut` that have not run yet; the returned buffer is valid until the next `start`."""
        for index in range(self._done, cut):
            block = self._blocks[index] or self._load(index)
            block.run()
            self._done = index + 1
        return self.buffers[cut]

    def embed(self, window: Array) -> Array:
        """Embedding of shape (d,) of one window of shape (samples,); a copy."""
        self.start(window)
        embedding: Array = self.advance(self.last_cut)[0].copy()
        return embedding

    def load_all(self, progress: Callable[[int], None] = lambda index: None) -> None:
        """Load every block now rather than at its first use."""
        for index, block in enumerate(self._blocks):
            if block is None:
                self._load(index)
            progress(index)

    def self_test(self) -> float:
        """Embed the probe chirp and compare with the bundle; returns the largest error. Raises SelfTestError."""
        info = self.bundle.manifest.info
        test = info.self_test.variants.get(self.variant, info.self_test)
        expected = np.frombuffer(test.embedding, "<f4")
        found = self.embed(probe_waveform(info.front_end.window_samples, info.front_end.sample_rate))
        error = float(np.max(np.abs(found - expected)))
        if not error <= test.tolerance:
            raise SelfTestError(
                f"{self.bundle.path}: self-test embedding is off by {error:.2e}, allowed {test.tolerance:.0e}"
            )
        return error

    def _load(self, index: int) -> LoadedBlock:
        name = self.bundle.manifest.info.blocks[index]
        info = self.bundle.manifest.variant(name, self.variant)
        where = f"{self.bundle.path}: {name} ({self.variant})"
        data = self.bundle.block_bytes(name, self.variant)
        block = self.backend.load(data, info, self.buffers[index], self.buffers[index + 1], where)
        self._blocks[index] = block
        return block
