"""Encoder to bundle: cut, lower, measure, prove, price, sign.

    compile_encoder(encoder, options, Path("bundle/"))
    recompile(base, tensors, Path("bundle-2/"), ...)     new weights of the same graph; nothing is traced

Both write the blocks first and then run them with the device runtime, so that the measurements and checks are of the
files a device will run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from torch import fx

from runtime_edge.base.files import write_atomic
from runtime_edge.base.heap import memory_kept
from runtime_edge.errors import BackendError, BundleError, UsageError
from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.encoder.log_mel_info import LogMelInfo
from runtime_edge.formats.manifest import (
    BundleInfo,
    Calibration,
    Component,
    Cut,
    EncoderInfo,
    FrontEndInfo,
    Manifest,
    Metadata,
    SelfTest,
)
from runtime_edge.inference.native_front_end import TOLERANCE
from runtime_edge.inference.prefix import Prefix
from runtime_edge.inference.profile import Profile
from streamsplit_compile.bottleneck.hiding import LabelledWindows
from streamsplit_compile.bundle.blocks import (
    has_norms,
    lower_blocks,
    norms_wanted,
    onnx_metadata,
    refused_block,
    reweight_block,
)
from streamsplit_compile.bundle.bundle_page import render_report
from streamsplit_compile.bundle.bundle_writer import staging_directory, write_manifest, write_table
from streamsplit_compile.bundle.calibrate import DEFAULT_WINDOWS, CalibrationSet, CutFailed, calibration_set
from streamsplit_compile.bundle.cut_assets.bottlenecks import add_bottlenecks
from streamsplit_compile.bundle.cut_assets.exits import add_exits, keep_exits
from streamsplit_compile.bundle.cut_assets.fitting import FittingPlan, checkpoints_of
from streamsplit_compile.bundle.cut_assets.released_bottlenecks import keep_bottlenecks
from streamsplit_compile.bundle.cut_choice import Notice, choose_cuts
from streamsplit_compile.bundle.digests import combined_digest, tensor_digests, weights_digest
from streamsplit_compile.bundle.effort import expected_effort
from streamsplit_compile.bundle.measure import Reference, measure
from streamsplit_compile.cost.cost_model import count_work
from streamsplit_compile.cost.radios import DEFAULT_LINK
from streamsplit_compile.cost.targets import Target
from streamsplit_compile.encoder.encoders import LoadedEncoder
from streamsplit_compile.encoder.graph import Candidate, ignores_waveform
from streamsplit_compile.encoder.segment import CutRefused, split
from streamsplit_compile.lowering.artifact_formats import Format, Precision, variant_name
from streamsplit_compile.splitter import pricing

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""
Tensors = Mapping[str, npt.NDArray[Any]]
MAX_DROPPED_CUTS = 8


@dataclass(frozen=True)
class CompileOptions:
    """What `ssc compile` lets the user choose."""

    targets: Sequence[Target]
    cuts: str = "auto"
    calibrate: Path | None = None
    calibration_windows: int = DEFAULT_WINDOWS
    seed: int = 0
    generation: int = 1
    hop_share: float = 0.5
    """Hop between windows as a share of the window (docs/method.md, section 1)."""
    formats: Sequence[Format] = ("onnx",)
    precisions: Sequence[Precision] = ("fp32",)
    """fp32 is always included: the others are made from it and compared with it."""
    keep_norms: bool = False
    adaptable: bool = False
    bottleneck_steps: int = 0
    """Training steps at each cut; 0 for the closed form. There are bottlenecks only if `calibrate` names recordings."""
    hidden: LabelledWindows | None = None
    """Recordings, one window of each, whose labels trained bottlenecks should not tell."""
    latent_noise: float = 0.0
    """Standard deviation of the noise that devices add to latents before rounding, in steps."""
    link: str = DEFAULT_LINK
    """The link whose radio the splitter tables assume."""
    measured: Profile | None = None
    """Costs measured on one of the targets, used instead of predicted ones."""
    key: minisign.SecretKey | None = field(default=None, repr=False)

    @property
    def variants(self) -> list[str]:
        """Names of the variants, the float32 one of the first format first."""
        precisions: list[Precision] = ["fp32", *(p for p in self.precisions if p != "fp32")]
        return [variant_name(name, precision) for precision in precisions for name in self.formats]


def compile_encoder(
    encoder: LoadedEncoder,
    options: CompileOptions,
    out: Path,
    progress: Progress = lambda what, done, total: None,
    notice: Notice = lambda line: None,
) -> Bundle:
    """Compile an encoder into a bundle directory.

    A cut that the user did not name and that fails (a format cannot express its blocks, its values are not finite, or
    it does not reproduce the encoder to 1e-4) is left out with a notice. Raises UsageError for cuts that do not exist,
    CheckFailed or UsageError when the encoder itself fails; nothing is written then.
    """
    if options.adaptable and "onnx" not in options.formats:
        raise UsageError("--adaptable: only ONNX files can be adapted; add onnx to --formats")
    progress("choosing cuts", 0, 1)
    cuts = choose_cuts(encoder, options.cuts, notice, bottlenecks=options.calibrate is not None)
    hop = max(1, round(encoder.window_samples * options.hop_share))
    calibration = calibration_set(
        options.calibrate,
        encoder.sample_rate,
        encoder.window_samples,
        hop,
        options.calibration_windows,
        options.seed,
    )
    blocks = [count_work(segment) for segment in split(encoder.graph, cuts)]
    encoder_ms = pricing.server_ms(count_work(encoder.graph.module))
    if line := expected_effort(blocks, encoder_ms, len(calibration.windows), len(options.variants)).notice:
        notice(line)
    if ignores_waveform(encoder.graph):
        notice("the embedding is the same whatever the waveform; look at the encoder's weights")
    failures: list[CutRefused | CutFailed] = []
    while True:
        try:
            _compile_cuts(encoder, options, cuts, calibration, hop, out, progress, notice)
            break
        except (CutRefused, CutFailed) as exc:
            failures.append(exc)
            kept = [cut for cut in cuts if cut.name != exc.cut or cut in (cuts[0], cuts[-1])]
            named = not (options.cuts in ("auto", "all") or options.cuts.isdecimal())
            if named or len(kept) == len(cuts) or len(failures) > MAX_DROPPED_CUTS:
                raise failures[0] from None
            notice(f"left out {exc}")
            cuts = kept
    bundle = open_bundle(out)
    if options.adaptable and not has_norms(bundle):
        notice("--adaptable: the encoder has no batch or layer norm with a scale and a shift; nothing can be adapted")
    # Beside the bundle, not in it: everything in a bundle is covered by a digest or a signature.
    write_atomic(report_path(out), render_report(bundle))
    shutil.rmtree(checkpoints_of(out), ignore_errors=True)
    return bundle


def _compile_cuts(
    encoder: LoadedEncoder,
    options: CompileOptions,
    cuts: Sequence[Candidate],
    calibration: CalibrationSet,
    hop: int,
    out: Path,
    progress: Progress,
    notice: Notice,
) -> None:
    """Compile the bundle of an encoder cut at these cuts. Raises CutRefused or CutFailed for a cut that fails."""
    segments = split(encoder.graph, cuts)
    work = [count_work(segment) for segment in segments]
    with staging_directory(out) as staging:
        components = lower_blocks(
            staging,
            segments,
            cuts,
            work,
            encoder.tensors,
            onnx_metadata(encoder.id, encoder.sample_rate, encoder.window_samples, encoder.front_end),
            options.formats,
            norms_wanted(options),
            progress,
        )
        info = _draft(encoder, options, list(components), cuts, calibration.said, hop)
        manifest = _manifest(info, components)
        loaded = {options.variants[0]: _load_blocks(staging, manifest, options.variants[0])}
        if (described := _described(encoder, cuts, loaded[options.variants[0]])) is not None:
            front_end = msgspec.structs.replace(info.front_end, log_mel=described)
            manifest = _manifest(msgspec.structs.replace(info, front_end=front_end), components)
        reference = Reference(segments, calibration.unseen, notice)
        manifest = measure(staging, manifest, options.variants, calibration.windows, reference, progress, loaded=loaded)
        if options.calibrate is not None:
            steps, kept = options.bottleneck_steps, checkpoints_of(out)
            plan = FittingPlan(options.calibrate, steps, options.seed, kept, options.hidden, options.latent_noise)
            for add in (add_bottlenecks, add_exits):
                manifest = add(staging, manifest, options.variants, segments, plan, progress, notice)
        progress("training splitter tables", 0, len(options.targets))
        manifest, tables = pricing.price(
            manifest, work, options.targets, options.seed, progress, link=options.link, measured=options.measured
        )
        for path, table in tables.items():
            write_table(staging, path, table.to_json(), options.key)
        write_manifest(staging, manifest, options.key)


def _load_blocks(root: Path, manifest: Manifest, variant: str) -> Prefix:
    """The device runtime with every block loaded. Raises CutRefused for a block that it cannot load."""
    prefix = Prefix(Bundle(root, manifest, "", None), variant)
    for index in prefix.missing:
        try:
            prefix.load(index)
        except BackendError as exc:
            raise refused_block([cut.name for cut in manifest.info.cuts], index, exc) from exc
    return prefix


def _described(encoder: LoadedEncoder, cuts: Sequence[Candidate], graph: Prefix) -> LogMelInfo | None:
    """How the first block's image is made, if the encoder says so and a device's FFT makes the same image."""
    if encoder.log_mel is None or not encoder.ends_log_mel(cuts[1]):
        return None
    info = encoder.log_mel[1]
    front_end = msgspec.structs.replace(graph.bundle.manifest.info.front_end, log_mel=info)
    difference = graph.compare_front_end(front_end)
    return info if difference <= TOLERANCE else None


def report_path(out: Path) -> Path:
    """The path of the page about a bundle: `bundle.html` for `bundle/`."""
    return out.with_name(f"{out.name}.html")


def recompile(
    base: Bundle,
    tensors: Tensors,
    out: Path,
    *,
    generation: int,
    windows: npt.NDArray[np.float32],
    reference: Reference | None,
    calibration: Calibration | None = None,
    key: minisign.SecretKey | None = None,
) -> Bundle:
    """The base bundle with new weights of the same graph, written into its kept graphs.

    Blocks whose parameters did not change keep their files and digests. int8 scales are measured on `windows`
    (n, samples) float32, and `calibration` says where those come from; with a `reference` every cut is checked as in a
    full compile. Raises BundleError when a tensor is missing or the generation does not grow, CheckFailed for bad cuts.
    """
    info = base.manifest.info
    if generation <= info.generation:
        raise BundleError(f"generation {generation} does not follow {info.generation} of {base.path}")
    said = info.calibration if calibration is None else calibration
    with memory_kept(), staging_directory(out) as staging:
        manifest = _reweight(staging, base, tensors, generation, windows, reference, said)
        for target, cost in info.targets.items():
            write_table(staging, cost.table, base.table(target).to_json(), key)
        write_manifest(staging, manifest, key)
    return open_bundle(out)


def bundle_variants(manifest: Manifest) -> list[str]:
    """Names of a bundle's variants, the float32 ones first."""
    names = manifest.components[manifest.info.blocks[0]].variants
    return sorted(names, key=lambda name: (not name.endswith("fp32"), name))


def changed_blocks(old: Manifest, new: Manifest) -> list[str]:
    """Blocks of `new` with a file that `old` does not have."""
    known = set(old.assets())
    return [
        name
        for name in new.info.blocks
        if any(v.executor_info.ssc.file not in known for v in new.components[name].variants.values())
    ]


def _reweight(
    staging: Path,
    base: Bundle,
    tensors: Tensors,
    generation: int,
    windows: npt.NDArray[np.float32],
    reference: Reference | None,
    calibration: Calibration,
) -> Manifest:
    """Write the blocks with new weights to `staging` and measure them; unchanged blocks are loaded meanwhile."""
    info, known = base.manifest.info, base.manifest.components
    metadata = onnx_metadata(
        info.encoder.id, info.front_end.sample_rate, info.front_end.window_samples, info.front_end.details
    )
    digests = tensor_digests(tensors)
    loaded = {variant: Prefix(base, variant) for variant in bundle_variants(base.manifest)}

    def reweighted(index: int) -> Component:
        name, source = info.blocks[index], _source(reference, base, index)
        component = reweight_block(staging, base, name, tensors, digests, metadata, source)
        if component == known[name]:
            for prefix in loaded.values():
                prefix.load(index)
        return component

    with ThreadPoolExecutor() as pool:
        components = dict(zip(info.blocks, pool.map(reweighted, range(len(info.blocks))), strict=True))
    encoder = msgspec.structs.replace(info.encoder, weights=combined_digest(digests, digests))
    draft = _manifest(
        msgspec.structs.replace(info, encoder=encoder, generation=generation, calibration=calibration, privacy=None),
        components,
    )
    changed = [index for index, name in enumerate(components) if components[name] != known[name]]
    first_changed = min(changed, default=len(components))
    measured = measure(staging, draft, list(loaded), windows, reference, lambda *_: None, first_changed, loaded)
    for keep in (keep_bottlenecks, keep_exits):
        measured = keep(staging, base, measured, list(loaded), reference, windows)
    return measured


def _draft(
    encoder: LoadedEncoder,
    options: CompileOptions,
    blocks: list[str],
    cuts: Sequence[Candidate],
    calibration: Calibration,
    hop: int,
) -> BundleInfo:
    """What is known before anything has been run; `measure` and `price` fill in the rest."""
    return BundleInfo(
        encoder=EncoderInfo(
            id=encoder.id,
            config=encoder.config,
            weights=weights_digest(encoder.tensors),
            embedding_dim=encoder.embedding_dim,
            load=encoder.load,
        ),
        generation=options.generation,
        front_end=FrontEndInfo(
            sample_rate=encoder.sample_rate,
            window_samples=encoder.window_samples,
            hop_samples=hop,
            details=encoder.front_end,
        ),
        blocks=blocks,
        cuts=[
            Cut(index=index, name=cut.name, node=cut.node, shape=cut.shape, bytes={}, agreement={})
            for index, cut in enumerate(cuts)
        ],
        targets={},
        server_block_ms=[],
        calibration=calibration,
        self_test=SelfTest(embedding=b"", tolerance=0.0),
        keep_norms=options.keep_norms,
        adaptable=options.adaptable,
        parity={},
    )


def _manifest(info: BundleInfo, components: dict[str, Component]) -> Manifest:
    return Manifest(
        package_name=info.encoder.id,
        package_version=str(info.generation),
        components=components,
        additional_metadata=Metadata(ssc=info),
    )


def _source(reference: Reference | None, base: Bundle, block: int) -> tuple[fx.GraphModule, tuple[int, ...]] | None:
    """The traced segment of a block and its input shape; None without a reference."""
    return None if reference is None else (reference.segments[block], base.manifest.info.cuts[block].shape)
