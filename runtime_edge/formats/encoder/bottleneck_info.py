"""A manifest's description of the bottleneck at a cut: an encoder after the prefix, a decoder before the suffix."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Literal

from msgspec import Meta

from runtime_edge.formats.encoder.parts import Agreement, Count, Part, StoredFile, VariantInfo
from runtime_edge.formats.strict import Name

MAX_LATENT_VALUES = 4096
"""The most values in one window's latent: they are coded one by one."""
MAX_NOISE = 64.0
MAX_DECODER_BYTES = 64 << 20
SYMBOLS = 256
"""A value of a latent is a whole number of 8 bits."""
CODING_BYTES = 2 * SYMBOLS
"""Bytes of the coding table of one channel."""

Format = Literal["onnx", "tflite"]


class WidthInfo(Part, frozen=True, kw_only=True):
    """Measurements of one width, on windows that were not trained on."""

    width: Annotated[int, Meta(ge=1, le=MAX_LATENT_VALUES)]
    """How many channels are shipped: the first ones."""
    bytes: Count
    """Median size of the payload."""
    bytes_p99: Count
    wire: dict[Name, Agreement]
    """Agreement of the embedding after prefix, bottleneck, wire, decoder and torch suffix, by the prefix's variant."""


class BottleneckInfo(Part, frozen=True, kw_only=True):
    """The bottleneck of one cut, for all its widths."""

    cut: Name
    shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=MAX_LATENT_VALUES)], ...], Meta(min_length=4, max_length=4)]
    """Shape of the latent: 1, channels, rows, columns."""
    files: dict[Format, VariantInfo]
    """The encoder from activation to latent, in float32, for prefixes of any precision."""
    decoder: StoredFile
    """The weights of both halves, for the server (`streamsplit_compile.bottleneck.block`); devices do not fetch it."""
    coding: StoredFile
    """How often each value occurs in each channel (`runtime_edge.formats.latent_codec`)."""
    widths: Annotated[tuple[WidthInfo, ...], Meta(min_length=1, max_length=16)]
    """Narrowest first."""
    self_test: dict[Name, bytes]
    """The latent of the self-test's waveform, by the prefix's variant: each channel's mean, float32."""
    macs: Count
    fitted_by: Literal["pca", "training"]
    steps: Count = 0
    """Number of training steps."""
    hides: Annotated[tuple[Literal["words", "speakers"], ...], Meta(max_length=2)] = ()
    """What it was trained not to tell; an audit says how far that went."""
    noise: Annotated[float, Meta(ge=0, le=MAX_NOISE)] = 0.0
    """Standard deviation of the noise that a device adds to each value before rounding, in steps."""

    @property
    def positions(self) -> int:
        """Number of values in one channel."""
        return self.shape[2] * self.shape[3]

    def assets(self) -> list[tuple[str, int]]:
        """Reference and size in bytes of every file."""
        compiled = [(file.file, file.bytes) for file in self.files.values()]
        return [*compiled, (self.decoder.file, self.decoder.bytes), (self.coding.file, self.coding.bytes)]

    def problems(self, cuts: Sequence[str], variants: Collection[str]) -> Iterator[str]:
        """What does not fit the bundle's cuts, or is inconsistent in itself."""
        if self.cut not in cuts[1:-1]:
            yield "cut: there is no such cut between the waveform and the embedding"
        channels = self.shape[1]
        if self.shape[0] != 1 or math.prod(self.shape) > MAX_LATENT_VALUES:
            yield f"shape: one window's latent has at most {MAX_LATENT_VALUES} values"
        widths = [found.width for found in self.widths]
        if widths != sorted(set(widths)) or widths[-1] > channels:
            yield f"widths: do not increase up to at most {channels}"
        if self.coding.bytes != CODING_BYTES * channels:
            yield f"coding.bytes: {channels} channels have {CODING_BYTES * channels}"
        if self.decoder.bytes > MAX_DECODER_BYTES:
            yield f"decoder.bytes: at most {MAX_DECODER_BYTES}"
        if {name.partition("-")[0] for name in variants} != set(self.files):
            yield "files: not one for each format of the blocks"
        for name in variants:
            if len(self.self_test.get(name, b"")) != 4 * channels:
                yield f"self_test.{name}: {channels} float32 values are needed"


def bottleneck_problems(
    found: Sequence[BottleneckInfo], cuts: Sequence[str], variants: Collection[str]
) -> Iterator[str]:
    """What does not fit the cuts and variants of a bundle."""
    if len({info.cut for info in found}) != len(found):
        yield "a cut has two"
    for info in found:
        for problem in info.problems(cuts, variants):
            yield f"{info.cut}: {problem}"
