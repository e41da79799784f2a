"""What tells one model from another, whatever the formats and precisions of its files."""

from __future__ import annotations

import msgspec

from runtime_edge.formats.manifest import Manifest, digest


def model_digest(manifest: Manifest) -> str:
    """Which model makes activations: `sha256:<hex>` over everything that determines them and their meaning on the wire:
    the weights of each block, and name, shape and int8 scales of each cut, in order.

    If cuts have bottlenecks, what decodes their latents counts as well.

    It is the same for all formats and precisions of a bundle, which ship the same cuts.
    """
    info = manifest.info
    weights = [manifest.components[block].additional_metadata.ssc.parameters for block in info.blocks]
    cuts = [(cut.name, cut.shape, cut.int8) for cut in info.cuts]
    parts: list[object] = [info.encoder.id, weights, msgspec.to_builtins(cuts)]
    if info.bottlenecks:  # without bottlenecks the digest is what it was before they existed
        parts.append([(found.cut, found.coding.file, found.decoder.file) for found in info.bottlenecks])
    return digest(msgspec.json.encode(parts, order="sorted"))


def model_number(manifest: Manifest) -> int:
    """The first 8 bytes of `model_digest`, big-endian, which every frame carries."""
    return digest_number(model_digest(manifest))


def digest_number(digest: str) -> int:
    """The first 8 bytes of `sha256:<hex>`, big-endian; never 0, which stands for no model."""
    return int(digest[7:23], 16) or 1
