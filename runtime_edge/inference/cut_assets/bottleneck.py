"""The bottleneck after a prefix: from the activation to the latent that is shipped."""

from __future__ import annotations

import numpy as np

from runtime_edge.errors import SelfTestError
from runtime_edge.formats.encoder.bottleneck_info import BottleneckInfo
from runtime_edge.formats.latent_codec import LatentCodec
from runtime_edge.inference.contract import Array
from runtime_edge.inference.cut_assets.small_block import load_behind
from runtime_edge.inference.prefix import Prefix

TOLERANCES = {"fp32": 0.1, "fp16": 0.5, "int8": 4.0, "auto": 4.0}
"""How far a channel's mean may be off in a self-test, in steps of the latent, by the precision of the prefix."""


class LoadedBottleneck:
    """The encoder of one cut's bottleneck, bound to the activation of a prefix, with its coding tables.

    `random` makes the noise of a bottleneck that ships with noise; by default nobody can repeat it. Raises BundleError
    or BackendError.
    """

    def __init__(self, prefix: Prefix, info: BottleneckInfo, random: np.random.Generator | None = None) -> None:
        self.info = info
        self._random = np.random.default_rng() if random is None else random
        self._latent = np.zeros(info.shape, np.float32)
        self._block = load_behind(prefix, info.cut, info.files, self._latent, "bottleneck")
        self.codec = LatentCodec(prefix.bundle.read(info.coding.file), info.shape)

    def latent(self) -> Array:
        """The latent (1, channels, rows, columns) of the prefix's activation; valid until the next call."""
        self._block.run()
        return self._latent

    def encode(self, width: int) -> tuple[bytes, bool]:
        """The payload to ship for the prefix's activation, and whether it is coded."""
        return self.codec.encode(with_noise(self.latent(), self.info.noise, self._random), width)

    def self_test(self, variant: str) -> None:
        """Compare the latent of the activation that a self-test has just left in the prefix with the manifest's.

        Raises SelfTestError.
        """
        expected = np.frombuffer(self.info.self_test[variant], "<f4")
        error = float(np.abs(self.latent()[0].mean(axis=(1, 2)) - expected).max())
        allowed = TOLERANCES[variant.partition("-")[2]]
        if not error <= allowed:
            raise SelfTestError(
                f"bottleneck at {self.info.cut}: its latent is off by {error:.2g} steps, allowed {allowed:g}"
            )


def with_noise(latent: Array, noise: float, random: np.random.Generator) -> Array:
    """A latent of any shape plus normal noise with this standard deviation, in steps."""
    if not noise:
        return latent
    found: Array = latent + np.float32(noise) * random.standard_normal(latent.shape, np.float32)
    return found
