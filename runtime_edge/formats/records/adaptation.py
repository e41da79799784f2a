"""The adaptation: scales and shifts for an encoder's normalisation layers, for devices that cannot train.

An adaptation (`streamsplit.adaptation/1`, JSON, at most 256 KiB) changes nothing else of a bundle. It fits the weights
of one generation, travels in a numbered record like a table, and can be swapped on its own.

    adaptation = Adaptation.from_json(record.body, "adaptation pi-1.rpi4")
    for layer in adaptation.layers:
        scale, shift = layer.arrays()

`Adaptation.from_json(adaptation.to_json(), ...) == adaptation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from runtime_edge.errors import FormatError
from runtime_edge.formats.encoder.parts import Expected
from runtime_edge.formats.manifest import Digest, Generation, Manifest, digest
from runtime_edge.formats.model_id import digest_number, model_digest
from runtime_edge.formats.strict import Name, Strict, decode

MAX_ADAPTATION_BYTES = 256 << 10
MAX_SCALE = 64.0
"""A scale is between this and its inverse: no channel is turned off or changes its sign, which int8 cannot express."""
Array = npt.NDArray[np.float32]


class AdaptedLayer(Strict, frozen=True, kw_only=True):
    """What one normalisation layer gives: `scale * y + shift` for each channel instead of the compiled layer's `y`.

    Relative to the compiled layer, because that is often folded into a convolution, where its own scale and shift are
    no longer known: a factor and a sum can be written there as well. A layer of weight `w` and bias `b` becomes one of
    `scale * w` and `scale * b + shift`. New statistics of a batch norm are such a change, too: with
    `s = sqrt((variance + eps) / (new variance + eps))` the scale is `s` and the shift
    `b - s * b + w * (mean - new mean) / sqrt(new variance + eps)`.
    """

    block: Name
    """The bundle's block whose files contain the layer."""
    name: Name
    """Name of the layer in the encoder, such as `features.4.block.0.1`."""
    scale: bytes
    """float16 (channels,), little-endian, from 1/64 to 64."""
    shift: bytes
    """float16 (channels,), little-endian."""

    def arrays(self) -> tuple[Array, Array]:
        """Scale and shift, each (channels,) float32."""
        return np.frombuffer(self.scale, "<f2").astype(np.float32), np.frombuffer(self.shift, "<f2").astype(np.float32)


class Adaptation(Strict, frozen=True, kw_only=True):
    """A whole adaptation. Building an inconsistent one raises FormatError naming the field."""

    format: Literal["streamsplit.adaptation/1"] = "streamsplit.adaptation/1"
    encoder: Name
    """Id of the encoder."""
    generation: Generation
    model: Digest
    """The weights whose layers it changes (`model_id.model_digest`, or `SubModel.digest`)."""
    created_by: Name
    self_tests: Annotated[dict[Name, Expected], Meta(max_length=16)]
    """By compiled variant, such as `onnx-fp32`: what the self-test must give with the new layers. A device whose
    variant is missing here refuses the adaptation."""
    layers: Annotated[tuple[AdaptedLayer, ...], Meta(max_length=4096)]
    """Other layers stay as compiled; an empty list undoes an earlier adaptation."""

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise FormatError(problem)

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of `to_json()`: the model that runs once it is in use. Its frames carry the first 8 bytes."""
        return digest(self.to_json())

    def check_fits(self, manifest: Manifest, variant: str, source: str) -> None:
        """Raise FormatError unless a bundle can run this adaptation in a variant."""
        info = manifest.info
        if (self.encoder, self.model) != (info.encoder.id, model_digest(manifest)):
            raise FormatError(
                f"{source}: made for generation {self.generation} of {self.encoder}; other weights run here, those of "
                f"generation {info.generation} of {info.encoder.id}"
            )
        if not self.layers:
            return
        if not info.adaptable:
            raise FormatError(f"{source}: the bundle cannot be adapted; compile it with --adaptable")
        if variant not in self.self_tests:
            raise FormatError(f"{source}: self_tests: only for {', '.join(self.self_tests)}, and {variant} runs here")
        for layer in self.layers:
            if layer.block not in manifest.components:
                raise FormatError(f"{source}: layers: {layer.name}: the bundle has no block {layer.block!r}")

    def of_block(self, block: str) -> dict[str, tuple[Array, Array]]:
        """Scales and shifts of a block's layers, by name."""
        return {layer.name: layer.arrays() for layer in self.layers if layer.block == block}

    @property
    def number(self) -> int:
        """The number that frames carry, instead of the bundle's."""
        return digest_number(self.digest)

    @classmethod
    def from_json(cls, data: bytes, source: str) -> Adaptation:
        """Read and check an adaptation. Raises FormatError, one line that names `source` and the field."""
        return decode(data, cls, source, MAX_ADAPTATION_BYTES)

    def to_json(self) -> bytes:
        """JSON with one layer per line. Raises FormatError if it is too large."""
        layers = ",\n  ".join(msgspec.json.encode(layer).decode() for layer in self.layers)
        fields = [f"{_json(name)}:{_json(getattr(self, name))}" for name in self.__struct_fields__ if name != "layers"]
        data = ("{" + ",\n ".join([*fields, f'"layers":[\n  {layers}]']) + "}\n").encode()
        if len(data) > MAX_ADAPTATION_BYTES:
            raise FormatError(
                f"layers: {len(self.layers)} layers make {len(data)} bytes, an adaptation has at most "
                f"{MAX_ADAPTATION_BYTES}; adapt fewer of them"
            )
        return data


def _json(value: object) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def _problems(adaptation: Adaptation) -> Iterator[str]:
    """What msgspec's types cannot express."""
    if bool(adaptation.layers) != bool(adaptation.self_tests):
        yield "self_tests: at least one for layers that change, and none where no layer does"
    for name, expected in adaptation.self_tests.items():
        if not expected.embedding or not _all_finite(expected.embedding, "<f4"):
            yield f"self_tests: {name}: the embedding is not finite float32"
    seen = set()
    for layer in adaptation.layers:
        if layer.name in seen:
            yield f"layers: {layer.name} stands twice"
        seen.add(layer.name)
        if not layer.scale or len(layer.scale) != len(layer.shift):
            yield f"layers: {layer.name}: {len(layer.scale)} bytes of scale and {len(layer.shift)} of shift"
        if not _all_finite(layer.scale, "<f2") or not _all_finite(layer.shift, "<f2"):
            yield f"layers: {layer.name}: not all finite float16"
            continue
        scale, _ = layer.arrays()
        if not ((scale >= 1 / MAX_SCALE) & (scale <= MAX_SCALE)).all():
            yield f"layers: {layer.name}: scales from {scale.min():g} to {scale.max():g}, allowed 1/64 to 64"


def _all_finite(data: bytes, kind: str) -> bool:
    return len(data) % np.dtype(kind).itemsize == 0 and bool(np.isfinite(np.frombuffer(data, kind)).all())
