"""Running any prefix of the encoder: one session for each block, chained through buffers allocated once."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from runtime_edge.base.heap import give_memory_back
from runtime_edge.errors import SelfTestError, UsageError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.graphs.onnx_norms import Layers
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.formats.records.adaptation import Adaptation
from runtime_edge.inference.contract import Array, LoadedBlock, RuntimeOptions
from runtime_edge.inference.factory import open_backend
from runtime_edge.inference.native_front_end import TOLERANCE, NativeFrontEnd, prove
from runtime_edge.inference.self_test import self_test_waveform
from runtime_edge.system import rss_mb

_LOG = logging.getLogger(__name__)
_LATELY_WINDOWS = 64
_FIRST_GUESS = 2.0
"""Assumed resident bytes of a loaded block per byte of its file, until it has been loaded and measured."""


class Prefix:
    """The encoder as a chain of blocks. `start` takes a window, `advance` runs up to a cut.

    Blocks are loaded when a cut first needs them and stay loaded, so that switching cuts costs nothing. With a memory
    limit, the blocks unused for longest (of these, the deepest first) are unloaded to make room; and while the process
    is above the limit, so are all that have not been used for 64 windows.

    Args:
        bundle: where the blocks come from.
        variant: which compiled files.
        options: how they are run.
        memory_limit_mb: resident memory of the process to stay under, MB (1e6 bytes); loading a block may exceed it
            for a moment.
        previous: a prefix used by the same thread; blocks with the same file are not loaded again.
        adaptation: what the normalisation layers give instead; it must fit the bundle and the variant.
        native: whether a front end that the bundle describes may run as this process's own FFT, which computes only
            what is new in a window, once it has been proved equal to the block it replaces.

    Raises:
        BundleError: the bundle has no such variant.
        BackendError, MissingExtra: its runtime is not installed.
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: str = "onnx-fp32",
        options: RuntimeOptions | None = None,
        memory_limit_mb: float | None = None,
        previous: Prefix | None = None,
        native: bool = False,
        adaptation: Adaptation | None = None,
    ) -> None:
        info = bundle.manifest.info
        files = [bundle.manifest.variant(block, variant) for block in info.blocks]
        self.bundle = bundle
        self.variant = variant
        self.adaptation = adaptation
        self.options = options or RuntimeOptions()
        self.backend = open_backend(files[0].format, self.options)
        self.buffers: list[Array] = [np.zeros(cut.shape, np.float32) for cut in info.cuts]
        self._files = files
        self._blocks: list[LoadedBlock | None] = [None] * len(files)
        self._native = native and info.front_end.log_mel is not None
        self._limit_mb = memory_limit_mb
        self._resident_mb = [_FIRST_GUESS * file.bytes / 1e6 for file in files]
        self._used = [0] * len(files)
        self._window = 0
        self._done = 0
        if previous is not None:
            self._take_over(previous)

    def __del__(self) -> None:
        if blocks := getattr(self, "_blocks", None):
            blocks.clear()
            give_memory_back()

    @property
    def last_cut(self) -> int:
        """Index of the cut after the whole encoder."""
        return len(self._files)

    @property
    def front_end(self) -> str:
        """What computes the front end: `fft`, or `graph` if the first block does, or if it is not loaded yet."""
        return "fft" if isinstance(self._blocks[0], NativeFrontEnd) else "graph"

    @property
    def blocks_there(self) -> tuple[int, int]:
        """How many of the first blocks are here, and how many the bundle has."""
        there = self.last_cut if not self.missing else self.bundle.blocks_there(self.variant)
        return there, self.last_cut

    @property
    def missing(self) -> list[int]:
        """Indices of the blocks that are not loaded."""
        return [index for index, block in enumerate(self._blocks) if block is None]

    def start(self, window: Array) -> None:
        """Take a window of shape (samples,) float32. Raises UsageError for another length."""
        if window.shape != self.buffers[0].shape[1:]:
            raise UsageError(f"window of shape {window.shape}; this encoder takes {self.buffers[0].shape[1:]}")
        self.buffers[0][0] = window
        self._done = 0
        self._window += 1
        if self._limit_mb is not None and self._window % _LATELY_WINDOWS == 0:
            self._make_room(0.0, unused_since=self._window - _LATELY_WINDOWS)

    def advance(self, cut: int) -> Array:
        """Run the blocks up to `cut` that have not run yet; the returned buffer is valid until the next `start`."""
        for index in range(self._done, cut):
            block = self._blocks[index] or self.load(index)
            block.run()
            self._used[index] = self._window
            self._done = index + 1
        return self.buffers[cut]

    def resume(self, cut: int, activation: Array) -> None:
        """Continue from an activation of the cut's shape, as if the blocks before had run; a server does this."""
        self.buffers[cut][...] = activation
        self._done = cut

    def fits(self, cut: int) -> bool:
        """Whether the blocks up to `cut` are here and fit into the memory limit without repeated loading."""
        missing = [index for index in self.missing if index < cut]
        if not missing:
            return True
        if cut > self.bundle.blocks_there(self.variant):
            return False
        if self._limit_mb is None:
            return True
        behind = sum(self._resident_mb[index] for index in range(cut, self.last_cut) if self._blocks[index])
        return rss_mb() - behind + sum(self._resident_mb[index] for index in missing) <= self._limit_mb

    def embed(self, window: Array) -> Array:
        """Embedding of shape (d,) of one window of shape (samples,); a copy."""
        self.start(window)
        embedding: Array = self.advance(self.last_cut)[0].copy()
        return embedding

    def load_all(self, progress: Callable[[int], None] = lambda index: None) -> None:
        """Load every block now instead of at its first use."""
        for index, block in enumerate(self._blocks):
            if block is None:
                self.load(index)
            progress(index)

    def self_test(self) -> float:
        """Embed the self-test chirp and compare with the bundle; returns the largest error. Raises SelfTestError.

        If only the first blocks are here, they only have to run and to give finite numbers.
        """
        info = self.bundle.manifest.info
        chirp = self_test_waveform(info.front_end.window_samples, info.front_end.sample_rate)
        there = self.bundle.blocks_there(self.variant)
        if there < self.last_cut:
            self.start(chirp)
            if not np.isfinite(self.advance(there)).all():
                raise SelfTestError(f"{self.bundle.path}: the first {there} blocks give values that are not finite")
            return 0.0
        test = info.self_test.variants.get(self.variant, info.self_test)
        if self.adaptation is not None and self.adaptation.layers:
            test = self.adaptation.self_tests[self.variant]
        expected = np.frombuffer(test.embedding, "<f4")
        found = self.embed(chirp)
        error = float(np.max(np.abs(found - expected)))
        if not error <= test.tolerance and self.front_end == "fft":
            _LOG.warning("front end: the self-test fails with the FFT (%.1e), so it runs in the graph", error)
            self._native, self._blocks[0] = False, None
            return self.self_test()
        if not error <= test.tolerance:
            raise SelfTestError(
                f"{self.bundle.path}: self-test embedding is off by {error:.2e}, allowed {test.tolerance:.0e}"
            )
        return error

    def load(self, index: int) -> LoadedBlock:
        """Load one block. Without a memory limit several may be loaded in parallel."""
        if self._limit_mb is not None:
            self._make_room(self._resident_mb[index], keep=index)
        before_mb = rss_mb()
        name, file = self.bundle.manifest.info.blocks[index], self._files[index]
        where = f"{self.bundle.path}: {name} ({self.variant})"
        data = self.bundle.block_bytes(name, self.variant)
        buffers = self.buffers[index], self.buffers[index + 1]
        block = self.backend.load(data, file, *buffers, where, self._layers(name))
        if index == 0 and self._native:
            block = self._proved(block)
        self._blocks[index] = block
        del data
        give_memory_back()
        self._resident_mb[index] = max(rss_mb() - before_mb, file.bytes / 1e6)
        return block

    def _layers(self, block: str) -> Layers:
        """Scales and shifts of a block's layers that are adapted."""
        return {} if self.adaptation is None else self.adaptation.of_block(block)

    def share_proof(self, other: Prefix) -> None:
        """Run the front end as another prefix of the same bundle does, which has proved its FFT."""
        if isinstance(other._blocks[0], NativeFrontEnd):
            self._blocks[0] = NativeFrontEnd(self.bundle.manifest.info.front_end, *self.buffers[:2])

    def compare_front_end(self, front_end: FrontEndInfo) -> float:
        """How far the image of a described front end is from what the first block computes."""
        return self._compared(self._blocks[0] or self.load(0), front_end)[1]

    def _compared(self, graph: LoadedBlock, front_end: FrontEndInfo) -> tuple[LoadedBlock, float]:
        source, result = self.buffers[:2]
        native, window = NativeFrontEnd(front_end, source, result), source.copy()
        difference = prove(graph, native, source, result, front_end.hop_samples)
        source[...] = window
        return native, difference

    def _proved(self, graph: LoadedBlock) -> LoadedBlock:
        """The front end's FFT if it computes the same image as its block, else the block."""
        native, difference = self._compared(graph, self.bundle.manifest.info.front_end)
        if difference <= TOLERANCE:
            _LOG.info("front end: an FFT of new frames, equal to the graph's to %.1e", difference)
            return native
        _LOG.warning(
            "front end: runs in the graph, since the FFT's image is off by %.1e, allowed %.0e", difference, TOLERANCE
        )
        self._native = False
        return graph

    def _make_room(self, needed_mb: float, keep: int | None = None, unused_since: int | None = None) -> None:
        """Unload blocks: those unused for longest first, and of these the deepest."""
        assert self._limit_mb is not None
        loaded = [index for index, block in enumerate(self._blocks) if block is not None and index != keep]
        for index in sorted(loaded, key=lambda index: (self._used[index], -index)):
            if rss_mb() + needed_mb <= self._limit_mb or (
                unused_since is not None and self._used[index] >= unused_since
            ):
                break
            self._blocks[index] = None
            give_memory_back()

    def _take_over(self, previous: Prefix) -> None:
        """Use the buffers and the loaded blocks of an earlier prefix where they are the same."""
        same = [buffer.shape for buffer in self.buffers] == [buffer.shape for buffer in previous.buffers]
        if not same or self.options != previous.options:
            return
        self.buffers = previous.buffers
        for index, file in enumerate(self._files):
            if index == 0 and not self._same_front_end(previous):
                continue
            name, before = self.bundle.manifest.info.blocks[index], previous.bundle.manifest.info.blocks[index]
            if file == previous._files[index] and not (self._layers(name) or previous._layers(before)):
                self._blocks[index] = previous._blocks[index]
                self._resident_mb[index] = previous._resident_mb[index]

    def _same_front_end(self, previous: Prefix) -> bool:
        """Whether what an earlier prefix runs instead of the first block may run here too."""
        ends = [prefix.bundle.manifest.info.front_end for prefix in (self, previous)]
        wanted = [prefix._native for prefix in (self, previous)]
        return wanted[0] == wanted[1] and (not wanted[0] or ends[0] == ends[1])
