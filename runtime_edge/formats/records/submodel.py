"""The sub-model: an encoder with some of its modules left out, compiled into the same bundle.

A sub-model (`streamsplit.submodel/1`, JSON, at most 8 MiB) is the file `submodels/<name>.json` of a bundle, signed on
its own like a table. It has blocks, cuts, targets and tables of its own, in a manifest like the bundle's; files with
equal weights are the same assets. Nothing makes or runs sub-models yet.

    small = SubModel.from_json(data, "submodels/small.json")
    small.digest          # its frames carry the first 8 bytes
    small.assets()        # a device that has the bundle needs only those that the bundle lacks

`SubModel.from_json(small.to_json(), ...) == small`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from runtime_edge.errors import BundleError
from runtime_edge.formats.encoder.parts import MAX_ASSET_BYTES, AssetRef
from runtime_edge.formats.manifest import MAX_MANIFEST_BYTES, Digest, Manifest, canonical, check_consistent, digest
from runtime_edge.formats.model_id import model_digest
from runtime_edge.formats.strict import Name, Strict, decode

MAX_SUBMODEL_BYTES = MAX_MANIFEST_BYTES


class Modules(Strict, frozen=True, kw_only=True):
    """Which of a layer's groups of channels or attention heads are kept."""

    layer: Name
    """Name of the layer in the whole encoder."""
    groups: Annotated[int, Meta(ge=1, le=4096)]
    """How many the whole encoder has."""
    kept: Annotated[tuple[Annotated[int, Meta(ge=0, lt=4096)], ...], Meta(max_length=4096)]
    """Indices in order; empty if the layer is skipped."""


class CutAsset(Strict, frozen=True, kw_only=True):
    """A file that belongs to a cut rather than to a block."""

    cut: Name
    kind: Literal["bottleneck", "decoder", "coding", "exit"]
    """`bottleneck` comes after the prefix, `decoder` before the suffix, `coding` is a static table or a zstd dictionary
    for what is shipped, and `exit` maps the activation to an embedding."""
    variant: Name | None
    """Variant of a compiled file, such as `onnx-fp32`; None for `coding`."""
    file: AssetRef
    bytes: Annotated[int, Meta(ge=1, le=MAX_ASSET_BYTES)]
    input: Name | None
    """Input name of the file's graph; None for `coding`."""
    output: Name | None
    widths: Annotated[tuple[Annotated[int, Meta(ge=1, le=65535)], ...], Meta(max_length=64)]
    """How many channels can be shipped, for all but exits; narrowest first."""


class SubModel(Strict, frozen=True, kw_only=True):
    """A whole sub-model. Building an inconsistent one raises BundleError naming the field."""

    format: Literal["streamsplit.submodel/1"] = "streamsplit.submodel/1"
    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
    """Unique in the bundle."""
    modules: Annotated[tuple[Modules, ...], Meta(min_length=1, max_length=4096)]
    """Every layer that has groups. Together with the generation's weights they determine the suffix of each cut."""
    embeds_like: Digest | None
    """The model whose embeddings it reproduces (`model_id.model_digest`), so that heads for that model fit; None if
    it has embeddings of its own."""
    head: Digest | None
    """SHA-256 of the head file that was fitted to it."""
    cut_assets: Annotated[tuple[CutAsset, ...], Meta(max_length=4096)]
    manifest: Manifest
    """Its blocks, cuts, targets, calibration, self-test and parity. Its tables are `tables/<name>.<target>.json`."""

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise BundleError(problem)

    @property
    def digest(self) -> str:
        """`sha256:<hex>` over its blocks and cuts (`model_id.model_digest`), then the assets of its cuts, in order."""
        assets = [msgspec.to_builtins(asset) for asset in self.cut_assets]
        return digest(msgspec.json.encode((model_digest(self.manifest), assets), order="sorted"))

    @classmethod
    def from_json(cls, data: bytes, source: str) -> SubModel:
        """Read and check a sub-model. Raises BundleError, one line that names `source` and the field."""
        found = decode(data, cls, source, MAX_SUBMODEL_BYTES, BundleError)
        check_consistent(found.manifest, f"{source}: manifest")
        return found

    def to_json(self) -> bytes:
        """Canonical JSON, as a manifest's."""
        return canonical(self)

    def assets(self) -> dict[str, int]:
        """Every asset it needs: reference -> bytes."""
        return self.manifest.assets() | {asset.file: asset.bytes for asset in self.cut_assets}


def _problems(model: SubModel) -> Iterator[str]:
    """What msgspec's types cannot express."""
    if len({modules.layer for modules in model.modules}) != len(model.modules):
        yield "modules: a layer stands twice"
    for modules in model.modules:
        if list(modules.kept) != sorted(set(modules.kept)) or any(kept >= modules.groups for kept in modules.kept):
            yield f"modules: {modules.layer}: kept is not an increasing choice of {modules.groups} groups"
    for target, cost in model.manifest.info.targets.items():
        if cost.table != f"tables/{model.name}.{target}.json":
            yield f"manifest: targets.{target}.table must be tables/{model.name}.{target}.json"
    yield from _asset_problems(model)


def _asset_problems(model: SubModel) -> Iterator[str]:
    cuts, sizes = {cut.name for cut in model.manifest.info.cuts}, model.manifest.assets()
    places = {(asset.cut, asset.kind, asset.variant) for asset in model.cut_assets}
    if len(places) != len(model.cut_assets):
        yield "cut_assets: a cut has two assets of one kind and variant"
    for asset in model.cut_assets:
        where = f"cut_assets: {asset.kind} at {asset.cut}"
        if asset.cut not in cuts:
            yield f"{where}: no such cut"
        compiled = asset.kind != "coding"
        if any((name is not None) != compiled for name in (asset.variant, asset.input, asset.output)):
            yield f"{where}: variant, input and output are given for all kinds but coding"
        if bool(asset.widths) == (asset.kind == "exit"):
            yield f"{where}: widths are given for all kinds but exit"
        if list(asset.widths) != sorted(set(asset.widths)):
            yield f"{where}: widths do not increase"
        if sizes.setdefault(asset.file, asset.bytes) != asset.bytes:
            yield f"{where}: bytes: {asset.bytes}, but {sizes[asset.file]} elsewhere for the same file"
