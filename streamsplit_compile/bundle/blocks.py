"""Writes blocks to disk: lowers segments in every format, puts new weights into kept graphs, derives precisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from torch import fx

from runtime_edge.errors import BackendError, BundleError, SscError, UsageError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.encoder.parts import KeptGraph, VariantInfo
from runtime_edge.formats.graphs.block_check import check_block
from runtime_edge.formats.graphs.onnx_norms import norms_of
from runtime_edge.formats.manifest import BlockInfo, BlockMetadata, Component, ExecutorInfo, Manifest, Variant
from streamsplit_compile.bundle.bundle_writer import link_asset, write_asset
from streamsplit_compile.bundle.digests import Digests, Tensors, combined_digest, tensor_digests
from streamsplit_compile.cost.cost_model import BlockWork
from streamsplit_compile.encoder.graph import Candidate
from streamsplit_compile.encoder.segment import CutRefused
from streamsplit_compile.lowering import artifact_formats
from streamsplit_compile.lowering.artifact_formats import Format, Precision
from streamsplit_compile.lowering.onnx_lowering import Norms

Source = tuple[fx.GraphModule, tuple[int, ...]]
"""A segment and the shape of its activation, for the few graphs that must be converted again."""


def lower_blocks(
    root: Path,
    segments: Sequence[fx.GraphModule],
    cuts: Sequence[Candidate],
    work: Sequence[BlockWork],
    tensors: Tensors,
    metadata: Mapping[str, str],
    wanted: Sequence[Format],
    norms: Norms,
    progress: Callable[[str, int, int], None],
) -> dict[str, Component]:
    """Lower every segment in float32 to every wanted format and write the files as assets.

    Raises MissingExtra, CutRefused naming a cut at one end of a block that a format cannot express, or UsageError when
    that block is the whole encoder.
    """
    components, digests = {}, tensor_digests(tensors)
    for index, (segment, cut) in enumerate(zip(segments, cuts, strict=False)):
        progress(f"lowering blocks to {', '.join(wanted)}", index, len(segments))
        block = BlockInfo(macs=work[index].macs)
        variants: dict[str, Variant] = {}
        for name in wanted:
            try:
                lowered = artifact_formats.lower(name, segment, cut.shape, tensors, metadata, norms)
                variants[artifact_formats.variant_name(name, "fp32")] = _variant(root, name, "fp32", lowered.model)
            except UsageError as exc:
                raise refused_block([cut.name for cut in cuts], index, exc) from exc
            block = _with_graph(root, block, name, lowered.kept, digests)
        components[f"block-{index:02d}"] = Component(variants=variants, additional_metadata=BlockMetadata(ssc=block))
    return components


class NormSettings(Protocol):
    """A compile's options, or what a manifest says of them."""

    @property
    def keep_norms(self) -> bool:
        """Whether normalisation layers stay unfolded."""

    @property
    def adaptable(self) -> bool:
        """Whether ONNX files say where their normalisation layers are."""


def norms_wanted(settings: NormSettings) -> Norms:
    """What becomes of normalisation layers. Raises UsageError for settings that exclude each other."""
    if settings.keep_norms and settings.adaptable:
        raise UsageError("adaptable: folds norms and says where they are, keep_norms leaves them; give one of the two")
    return "kept" if settings.keep_norms else "adaptable" if settings.adaptable else "folded"


def has_norms(bundle: Bundle) -> bool:
    """Whether any ONNX file of a bundle says where a normalisation layer is. Raises BundleError."""
    return any(norms_of(bundle.block_bytes(name, "onnx-fp32"), name) for name in bundle.manifest.info.blocks)


def onnx_metadata(encoder_id: str, sample_rate: int, window_samples: int, details: Mapping[str, Any]) -> dict[str, str]:
    """Flat metadata in sherpa-onnx's style; the same for every generation, so that blocks keep their digests."""
    flat = {name: str(value) for name, value in details.items() if isinstance(value, (int, float, str, bool))}
    return {
        **flat,
        "sample_rate": str(sample_rate),
        "ssc.encoder": encoder_id,
        "ssc.window_samples": str(window_samples),
    }


def refused_block(cuts: Sequence[str], block: int, exc: SscError) -> SscError:
    """The error for a block that cannot be lowered or run. It names a cut at one of its ends that may be dropped."""
    if len(cuts) <= 2:
        return exc
    return CutRefused(cuts[block] if block else cuts[1], str(exc))


def reweight_block(
    root: Path,
    base: Bundle,
    name: str,
    tensors: Tensors,
    digests: Digests,
    metadata: Mapping[str, str],
    source: Source | None,
) -> Component:
    """One block of the base bundle with new weights in float32; it keeps its files if its weights have not changed.

    Raises BundleError when a tensor is missing, UsageError when a graph must be converted and there is no source.
    """
    component = base.manifest.components[name]
    block = component.additional_metadata.ssc
    kept = {format_name: base.read(graph.file) for format_name, graph in block.graphs.items()}
    try:
        found = {digest for name_, graph in kept.items() if (digest := _digest(name_, graph, digests))}
    except KeyError as exc:
        raise BundleError(f"{base.path}: {name} needs tensor {exc}; are these weights of this encoder?") from None
    for graph in block.graphs.values():
        link_asset(base, root, graph.file)
    if not found or found == {block.parameters}:
        for variant in component.variants.values():
            link_asset(base, root, variant.executor_info.ssc.file)
        return component
    norms = norms_wanted(base.manifest.info)
    variants = {
        artifact_formats.variant_name(format_name, "fp32"): _variant(
            root,
            format_name,
            "fp32",
            artifact_formats.reweight(format_name, graph, tensors, metadata, norms, source),
        )
        for format_name, graph in kept.items()
    }
    block = msgspec.structs.replace(block, parameters=found.pop())
    return Component(variants=variants, additional_metadata=BlockMetadata(ssc=block))


def derive_precisions(
    root: Path,
    manifest: Manifest,
    wanted: Sequence[str],
    activations: Sequence[npt.NDArray[np.float32]] | None,
    progress: Callable[[str, int, int], None],
) -> Manifest:
    """Add the wanted variants that blocks lack, made from their float32 files.

    `activations[k]` (windows, *shape) is the input of block k on calibration audio; int8 needs it. Raises UsageError.
    """
    bundle = Bundle(root, manifest, "", None)
    components = dict(manifest.components)
    for index, name in enumerate(manifest.info.blocks):
        variants = dict(components[name].variants)
        for variant in wanted:
            if variant in variants:
                continue
            progress("making smaller precisions", index, len(manifest.info.blocks))
            format_name, precision = split_variant(variant)
            model = bundle.block_bytes(name, artifact_formats.variant_name(format_name, "fp32"))
            inputs = None if activations is None else activations[index]
            data = artifact_formats.to_precision(format_name, model, precision, inputs)
            variants[variant] = _variant(root, format_name, "int8" if precision == "auto" else precision, data)
        components[name] = msgspec.structs.replace(components[name], variants=variants)
    return msgspec.structs.replace(manifest, components=components)


def keep_in_fp32(manifest: Manifest, variant: str, block: str) -> Manifest:
    """The manifest with one block of a mixed variant in float32 instead of int8."""
    format_name, _ = split_variant(variant)
    component = manifest.components[block]
    exact = component.variants[artifact_formats.variant_name(format_name, "fp32")]
    changed = msgspec.structs.replace(component, variants={**component.variants, variant: exact})
    return msgspec.structs.replace(manifest, components={**manifest.components, block: changed})


def split_variant(variant: str) -> tuple[Format, Precision]:
    """`onnx-int8` as ("onnx", "int8"). Raises BundleError for a name this version does not make."""
    for format_name in artifact_formats.FORMATS:
        for precision in artifact_formats.PRECISIONS:
            if variant == artifact_formats.variant_name(format_name, precision):
                return format_name, precision
    raise BundleError(
        f"variant {variant!r}: this version makes {', '.join(artifact_formats.FORMATS)} "
        f"in {artifact_formats.PRECISIONS}"
    )


def _with_graph(root: Path, block: BlockInfo, name: Format, kept: bytes, digests: Digests) -> BlockInfo:
    """The block with its kept graph stored beside it, unless the graph has no parameters and so can never change."""
    digest = _digest(name, kept, digests)
    if digest is None:
        return block
    graph = KeptGraph(file=write_asset(root, f"{name}.graph", kept), bytes=len(kept))
    return msgspec.structs.replace(block, parameters=digest, graphs={**block.graphs, name: graph})


def _digest(format_name: Format, kept: bytes, digests: Digests) -> str | None:
    """Digest of a kept graph's parameters; None when it has none. Raises KeyError."""
    names = artifact_formats.parameter_names(format_name, kept)
    return combined_digest(digests, names) if names else None


def _variant(root: Path, format_name: Format, precision: Precision, data: bytes) -> Variant:
    try:
        check_block(format_name, data, f"{format_name} in {precision}")
    except BackendError as exc:
        raise UsageError(f"{exc}; write this part of the encoder in other operators, or cut before it") from None
    info = VariantInfo(
        format=format_name,
        precision=precision,
        file=write_asset(root, f"model.{format_name}", data),
        bytes=len(data),
        input=artifact_formats.INPUT,
        output=artifact_formats.OUTPUT,
    )
    return Variant(executor_info=ExecutorInfo(ssc=info))
