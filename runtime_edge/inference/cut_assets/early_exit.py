"""The exit after a prefix: from the activation to an embedding, without the remaining blocks."""

from __future__ import annotations

import numpy as np

from runtime_edge.errors import SelfTestError
from runtime_edge.formats.encoder.exit_info import ExitInfo
from runtime_edge.inference.contract import Array
from runtime_edge.inference.cut_assets.small_block import load_behind
from runtime_edge.inference.prefix import Prefix

TOLERANCES = {"fp32": 0.01, "fp16": 0.05, "int8": 0.3, "auto": 0.3}
"""How far an embedding may be off in a self-test, as a share of the largest value, by the prefix's precision."""


class LoadedExit:
    """The exit of one cut, bound to the activation of a prefix.

    Raises BundleError or BackendError.
    """

    def __init__(self, prefix: Prefix, info: ExitInfo) -> None:
        manifest = prefix.bundle.manifest
        self.info = info
        self.cut = manifest.cut_named(info.cut).index
        self._embedding = np.zeros((1, manifest.info.encoder.embedding_dim), np.float32)
        self._block = load_behind(prefix, info.cut, info.files, self._embedding, "exit")

    def embedding(self) -> Array:
        """The embedding (d,) of the prefix's activation; a copy."""
        self._block.run()
        copied: Array = self._embedding[0].copy()
        return copied

    def self_test(self, variant: str) -> None:
        """Compare the embedding of the activation that a self-test has just left in the prefix with the manifest's.

        Raises SelfTestError.
        """
        expected = np.frombuffer(self.info.self_test[variant], "<f4")
        error = float(np.abs(self.embedding() - expected).max())
        allowed = TOLERANCES[variant.partition("-")[2]] * float(np.abs(expected).max())
        if not error <= allowed:
            raise SelfTestError(f"exit at {self.info.cut}: its embedding is off by {error:.2g}, allowed {allowed:.2g}")
