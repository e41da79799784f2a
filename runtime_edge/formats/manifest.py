"""The bundle's manifest: what is in it, where it was cut, what each part costs.

`manifest.json` is an ONNX Runtime model package (schema 1.0, layout "portable"): components are blocks, variants
are `<format>-<precision>`. What this project adds is under `additional_metadata["ssc"]` and `executor_info["ssc"]`.
Unknown fields are refused everywhere, and `decode(encode(m)) == m`.
"""

from __future__ import annotations

import hashlib
import math
import re
from itertools import chain
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from runtime_edge.errors import BundleError
from runtime_edge.formats import strict
from runtime_edge.formats.encoder.bottleneck_info import BottleneckInfo, bottleneck_problems
from runtime_edge.formats.encoder.exit_info import ExitInfo, exit_problems
from runtime_edge.formats.encoder.load_options import MAX_SAMPLE_RATE, LoadOptions
from runtime_edge.formats.encoder.log_mel_info import LogMelInfo
from runtime_edge.formats.encoder.parts import (
    Agreement,
    Cosine,
    Count,
    CutParity,
    Expected,
    KeptGraph,
    Part,
    Positive,
    Tolerance,
    VariantInfo,
)
from runtime_edge.formats.encoder.privacy_info import PrivacyInfo
from runtime_edge.formats.strict import Name

MAX_MANIFEST_BYTES = 8 << 20

MAX_ACTIVATION_VALUES = 1 << 28
"""The most values in one window at all cuts: what a device allocates because a manifest asks for it."""
MAX_WINDOW_SAMPLES = 1 << 24
MIN_SCALE, MAX_SCALE = 1e-30, 1e30
"""Limits of int8 scales: every value they represent is finite in float32."""

Generation = Annotated[int, Meta(ge=1, le=0xFFFFFFFF)]
Cost = Annotated[float, Meta(ge=0, le=1e9)]
Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]


class ExecutorInfo(Part, frozen=True, kw_only=True):
    """The `executor_info` object of a variant: only our namespace."""

    ssc: VariantInfo


class Variant(Part, frozen=True, kw_only=True):
    """A variant of a component (named `<format>-<precision>`)."""

    executor_info: ExecutorInfo


class BlockInfo(Part, frozen=True, kw_only=True):
    """What all variants of a block share."""

    parameters: Digest | None = None
    """Digest over the names and values of the parameters in this block; None if it has none."""
    graphs: dict[Literal["onnx", "tflite"], KeptGraph] = msgspec.field(default_factory=dict)
    """The kept graph of each format; none if the block has no parameters. Devices do not fetch them."""
    macs: Count = 0


class BlockMetadata(Part, frozen=True, kw_only=True):
    """The `additional_metadata` object of a component."""

    ssc: BlockInfo


class Component(Part, frozen=True, kw_only=True):
    """A block: the graph between two neighbouring cuts."""

    variants: dict[Name, Variant]
    additional_metadata: BlockMetadata


class Int8Scale(Part, frozen=True, kw_only=True):
    """Static per-channel affine quantisation: real = scale[c] * (q - zero_point[c]).

    `scale` is float32 and `zero_point` int8, both little-endian and of length shape[axis].
    """

    axis: Annotated[int, Meta(ge=0, le=8)]
    scale: bytes
    zero_point: bytes

    def arrays(
        self, shape: tuple[int, ...], source: str = "manifest.json"
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
        """Scale and zero point, each of shape (shape[axis],). Raises BundleError if they do not fit."""
        if self.axis >= len(shape):
            raise BundleError(f"{source}: int8.axis {self.axis} is outside shape {list(shape)}")
        scale = _array(self.scale, "<f4", shape[self.axis], f"{source}: int8.scale").astype(np.float32)
        zero = _array(self.zero_point, "i1", shape[self.axis], f"{source}: int8.zero_point").astype(np.int8)
        if not ((scale >= MIN_SCALE) & (scale <= MAX_SCALE)).all():
            raise BundleError(f"{source}: int8.scale must be from {MIN_SCALE:g} to {MAX_SCALE:g}")
        return scale, zero


class Cut(Part, frozen=True, kw_only=True, omit_defaults=False):
    """A boundary between blocks where exactly one tensor crosses. Cut 0 is the waveform, the last cut the embedding."""

    index: Count
    name: Name
    node: Name
    shape: Annotated[tuple[Positive, ...], Meta(min_length=1, max_length=8)]
    """With a leading batch axis of 1."""
    dtype: Literal["float32"] = "float32"
    bytes: dict[Name, Count]
    """Payload bytes by encoding: the median over the calibration windows, after zstd."""
    agreement: dict[Name, Cosine]
    """Median cosine of the final embedding with that of the float32 encoder, by encoding, as last measured."""
    int8: Int8Scale | None = None

    @property
    def values(self) -> int:
        """Number of values in the activation of one window."""
        return math.prod(self.shape)


class TargetCost(Part, frozen=True, kw_only=True):
    """Predicted cost of each block on one target, in block order."""

    variant: Name
    """The variant of the blocks that the costs are for."""
    threads: Annotated[int, Meta(ge=1, le=256)] = 1
    """The number of inference threads that the costs are for."""
    providers: Annotated[tuple[Literal["cpu", "xnnpack", "coreml"], ...], Meta(min_length=1, max_length=8)] = (
        "xnnpack",
        "cpu",
    )
    """Execution providers of a runtime, preferred first; it uses the first that it has."""
    block_ms: list[Cost]
    block_mj: list[Cost]
    block_peak_bytes: list[Count]
    radio_mj_per_kb: Cost
    table: Name
    provenance: Literal["predicted", "measured"] = "predicted"


class EncoderInfo(Part, frozen=True, kw_only=True):
    """Which encoder this is: enough to build it again from its registered name."""

    id: Name
    config: dict[str, Any]
    weights: Digest
    embedding_dim: Annotated[int, Meta(ge=1, le=1 << 16)]
    load: LoadOptions | None = None
    """None if its file says everything."""


class FrontEndInfo(Part, frozen=True, kw_only=True):
    """The signal the encoder takes. The log-mel itself is inside the graph, but may be described here too."""

    sample_rate: Annotated[int, Meta(ge=1, le=MAX_SAMPLE_RATE)]
    window_samples: Annotated[int, Meta(ge=1, le=MAX_WINDOW_SAMPLES)]
    hop_samples: Annotated[int, Meta(ge=1, le=MAX_WINDOW_SAMPLES)]
    details: dict[str, Any]
    log_mel: LogMelInfo | None = None
    """What the first block computes, if a device may compute it in its own way."""


class Calibration(Part, frozen=True, kw_only=True):
    """What the int8 scales and agreements were measured on."""

    source: Name
    windows: Count
    seed: Count


class SelfTest(Part, frozen=True, kw_only=True):
    """A device runs the chirp of `runtime_edge.inference.self_test` and compares with this float32 embedding."""

    embedding: bytes
    tolerance: Tolerance
    variants: dict[Name, Expected] = msgspec.field(default_factory=dict)
    """For variants of other precisions, whose embedding differs."""


class Parity(Part, frozen=True, kw_only=True):
    """One variant compared with the whole encoder."""

    windows: Count
    cuts: list[CutParity]

    @property
    def exact(self) -> list[Agreement]:
        """Agreement with the float32 wire, by cut."""
        return [cut.wire["float32"] for cut in self.cuts]

    @property
    def max_abs_error(self) -> list[float]:
        """Largest error of the embedding with the float32 wire, by cut."""
        return [agreement.max_abs_error for agreement in self.exact]


class BundleInfo(Part, frozen=True, kw_only=True):
    """Everything this project records about a bundle."""

    encoder: EncoderInfo
    generation: Positive
    front_end: FrontEndInfo
    blocks: Annotated[list[Name], Meta(min_length=1, max_length=4096)]
    cuts: Annotated[list[Cut], Meta(min_length=2, max_length=4097)]
    targets: dict[Name, TargetCost]
    server_block_ms: list[Cost]
    """Predicted cost of each block on the server, in block order."""
    calibration: Calibration
    self_test: SelfTest
    parity: dict[Name, Parity]
    """By variant; empty if these weights were never compared with their encoder."""
    keep_norms: bool = False
    """Whether normalisation layers were left unfolded."""
    adaptable: bool = False
    """Whether ONNX files say where these layers are."""
    bottlenecks: Annotated[tuple[BottleneckInfo, ...], Meta(max_length=4096)] = ()
    """In the order of their cuts; at most one per cut."""
    exits: Annotated[tuple[ExitInfo, ...], Meta(max_length=4096)] = ()
    """In the order of their cuts; at most one per cut."""
    privacy: PrivacyInfo | None = None
    """What shipping gives away; None if these weights were never audited."""


class Metadata(Part, frozen=True, kw_only=True):
    """The `additional_metadata` object of the package."""

    ssc: BundleInfo


class Manifest(Part, frozen=True, kw_only=True, omit_defaults=False):
    """The whole `manifest.json`."""

    schema_version: Literal["1.0"] = "1.0"
    package_name: Name
    package_version: Name
    layout: Literal["portable"] = "portable"
    components: dict[Name, Component]
    additional_metadata: Metadata

    @property
    def info(self) -> BundleInfo:
        """The part under `additional_metadata["ssc"]`."""
        return self.additional_metadata.ssc

    def variant(self, block: str, variant: str) -> VariantInfo:
        """The file of one block. Raises BundleError naming the available variants."""
        variants = self.components[block].variants
        if variant not in variants:
            raise BundleError(f"manifest.json: {block} has no variant {variant!r}, only {sorted(variants)}")
        return variants[variant].executor_info.ssc

    def bottleneck(self, cut: str) -> BottleneckInfo | None:
        """The bottleneck at a cut, if it has one."""
        return next((found for found in self.info.bottlenecks if found.cut == cut), None)

    def exit(self, cut: str) -> ExitInfo | None:
        """The exit at a cut, if it has one."""
        return next((found for found in self.info.exits if found.cut == cut), None)

    @property
    def widths(self) -> dict[str, frozenset[int]]:
        """The widths of each cut's bottleneck, by cut."""
        return {found.cut: frozenset(width.width for width in found.widths) for found in self.info.bottlenecks}

    @property
    def exit_cuts(self) -> frozenset[str]:
        """The cuts that have an exit."""
        return frozenset(found.cut for found in self.info.exits)

    @property
    def variants(self) -> list[str]:
        """The variants that every block has, sorted."""
        return sorted(set.intersection(*(set(component.variants) for component in self.components.values())))

    def device_files(self, variant: str, blocks: int | None = None) -> dict[str, tuple[str, int]]:
        """What a device needs for its first `blocks` blocks: name -> reference and bytes. Raises BundleError."""
        run = self.info.blocks[:blocks]
        files = {block: self.variant(block, variant) for block in run}
        found = {block: (file.file, file.bytes) for block, file in files.items()}
        reached = {cut.name for cut in self.info.cuts[: len(run) + 1]}
        for bottleneck in self.info.bottlenecks:
            if run and bottleneck.cut in reached:
                encoder, coding = bottleneck.files[files[run[0]].format], bottleneck.coding
                found[f"{bottleneck.cut}: bottleneck"] = encoder.file, encoder.bytes
                found[f"{bottleneck.cut}: coding tables"] = coding.file, coding.bytes
        for early in (one for one in self.info.exits if run and one.cut in reached):
            file = early.files[files[run[0]].format]
            found[f"{early.cut}: exit"] = file.file, file.bytes
        return found

    def assets(self) -> dict[str, int]:
        """Every asset that a device, compiler or server may read: reference -> bytes."""
        parts = [*(one.assets() for one in self.info.bottlenecks), *(one.assets() for one in self.info.exits)]
        found = dict(chain.from_iterable(parts))
        for component in self.components.values():
            for variant in component.variants.values():
                found[variant.executor_info.ssc.file] = variant.executor_info.ssc.bytes
            found |= {graph.file: graph.bytes for graph in component.additional_metadata.ssc.graphs.values()}
        return found

    def cut_named(self, name: str) -> Cut:
        """The cut of that name. Raises BundleError listing the available names."""
        for cut in self.info.cuts:
            if cut.name == name:
                return cut
        raise BundleError(f"no cut {name!r}; this bundle has {', '.join(c.name for c in self.info.cuts)}")


def encode(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`."""
    return canonical(manifest)


def canonical(value: msgspec.Struct) -> bytes:
    """Canonical JSON: sorted keys, two-space indent, a final newline."""
    packed = msgspec.json.encode(msgspec.to_builtins(value), order="sorted")
    return msgspec.json.format(packed, indent=2) + b"\n"


def decode(data: bytes, source: str = "manifest.json") -> Manifest:
    """Read and check a manifest. Raises BundleError naming the field."""
    manifest = strict.decode(data, Manifest, source, MAX_MANIFEST_BYTES, BundleError)
    check_consistent(manifest, source)
    return manifest


def digest(data: bytes) -> str:
    """`sha256:<hex>` of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def asset_ref(name: str, data: bytes) -> str:
    """Reference of a one-file asset directory, as ONNX Runtime's model package hashes directories."""
    line = f"{hashlib.sha256(data).hexdigest()}  {name}\n"
    return f"{digest(line.encode())}/{name}"


def _array(data: bytes, dtype: str, length: int, field: str) -> npt.NDArray[Any]:
    if len(data) != (expected := length * np.dtype(dtype).itemsize):
        raise BundleError(f"{field} has {len(data)} bytes, expected {expected}")
    return np.frombuffer(data, dtype)


def check_consistent(manifest: Manifest, source: str) -> None:
    """Raise BundleError, naming the field, unless the parts of a manifest fit each other."""
    info = manifest.info
    if sorted(info.blocks) != sorted(manifest.components) or len(set(info.blocks)) != len(info.blocks):
        raise BundleError(f"{source}: blocks and components do not name the same blocks")
    if len(info.cuts) != len(info.blocks) + 1:
        raise BundleError(f"{source}: {len(info.blocks)} blocks need {len(info.blocks) + 1} cuts")
    if [cut.index for cut in info.cuts] != list(range(len(info.cuts))):
        raise BundleError(f"{source}: cuts[].index must count up from 0")
    if len({cut.name for cut in info.cuts}) != len(info.cuts):
        raise BundleError(f"{source}: cuts[].name must be unique")
    if sum(cut.values for cut in info.cuts) > MAX_ACTIVATION_VALUES:
        raise BundleError(f"{source}: the shapes of all cuts hold more than {MAX_ACTIVATION_VALUES} values")
    for cut in info.cuts:
        if cut.int8 is not None:
            cut.int8.arrays(cut.shape, source)
    if info.cuts[0].shape != (1, info.front_end.window_samples):
        raise BundleError(f"{source}: cuts[0].shape must be [1, front_end.window_samples]")
    if info.front_end.log_mel is not None:
        try:
            info.front_end.log_mel.check(info.front_end.sample_rate, info.front_end.window_samples, info.cuts[1].shape)
        except ValueError as exc:
            raise BundleError(f"{source}: front_end.log_mel: {exc}") from None
    if info.cuts[-1].shape != (1, info.encoder.embedding_dim):
        raise BundleError(f"{source}: the last cut's shape must be [1, encoder.embedding_dim]")
    if len(info.server_block_ms) != len(info.blocks):
        raise BundleError(f"{source}: server_block_ms needs one number for each block")
    _array(info.self_test.embedding, "<f4", info.encoder.embedding_dim, f"{source}: self_test.embedding")
    for name, expected in info.self_test.variants.items():
        _array(expected.embedding, "<f4", info.encoder.embedding_dim, f"{source}: self_test.variants.{name}.embedding")
    for name, parity in info.parity.items():
        if len(parity.cuts) != len(info.cuts) or any("float32" not in cut.wire for cut in parity.cuts):
            raise BundleError(f"{source}: parity.{name}.cuts needs one entry for each cut, float32 in its wire")
    variants = manifest.components[info.blocks[0]].variants
    for problem in bottleneck_problems(info.bottlenecks, [cut.name for cut in info.cuts], variants):
        raise BundleError(f"{source}: bottlenecks: {problem}")
    for problem in exit_problems(info.exits, [cut.name for cut in info.cuts], variants, info.encoder.embedding_dim):
        raise BundleError(f"{source}: exits: {problem}")
    for name, cost in info.targets.items():
        for field in ("block_ms", "block_mj", "block_peak_bytes"):
            if len(getattr(cost, field)) != len(info.blocks):
                raise BundleError(f"{source}: targets.{name}.{field} needs one number for each block")
        if not re.fullmatch(r"tables/[a-z0-9._-]+\.json", cost.table):
            raise BundleError(f"{source}: targets.{name}.table must be tables/<target>.json")
