"""Parts that several sections of a manifest share: references to files, counts, and errors."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from runtime_edge.formats.strict import Name, Strict

MAX_ASSET_BYTES = 4 << 30

Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Positive = Annotated[int, Meta(ge=1, le=1 << 31)]
MOST_TOLERANCE = 100.0
Tolerance = Annotated[float, Meta(ge=0, le=MOST_TOLERANCE)]
Cosine = Annotated[float, Meta(ge=-1, le=1)]
AssetRef = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}/[a-z0-9][a-z0-9._-]{0,63}\Z")]


class Part(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the parts of a manifest."""


class VariantInfo(Part, frozen=True, kw_only=True):
    """One compiled file of a block."""

    format: Literal["onnx", "tflite"]
    precision: Name
    file: AssetRef
    bytes: Annotated[int, Meta(ge=1, le=MAX_ASSET_BYTES)]
    input: Name
    output: Name


class KeptGraph(Part, frozen=True, kw_only=True):
    """A block's graph without its weights, so that new ones can be inserted without tracing again."""

    file: AssetRef
    bytes: Annotated[int, Meta(ge=1, le=MAX_ASSET_BYTES)]


class StoredFile(Part, frozen=True, kw_only=True):
    """A file of a bundle that no inference runtime reads."""

    file: AssetRef
    bytes: Annotated[int, Meta(ge=1, le=MAX_ASSET_BYTES)]


class Agreement(Part, frozen=True, kw_only=True):
    """The error of values against the encoder in float32, over the measured windows."""

    max_abs_error: Annotated[float, Meta(ge=0, le=1e39)]
    cosine_median: Cosine
    cosine_worst: Cosine
    by_uncertainty: Annotated[list[Cosine], Meta(max_length=16)] = msgspec.field(default_factory=list)
    """For an embedding: the median cosine in equally wide bins of a window's uncertainty over [0, 1]."""


class CutParity(Part, frozen=True, kw_only=True):
    """Parity of one variant at one cut."""

    prefix: Agreement
    """The activation that the blocks up to the cut give."""
    wire: dict[Name, Agreement]
    """The embedding after device prefix, wire and server suffix, by encoding; float32 is always included."""


class Expected(Part, frozen=True, kw_only=True):
    """The float32 embedding that a variant should give, and by how much it may differ."""

    embedding: bytes
    tolerance: Tolerance
