"""Fits a bundle's bottlenecks to windows of recordings, writes them as assets, and measures them on other windows.

manifest = add_bottlenecks(root, manifest, variants, segments, plan, progress, notice)
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from runtime_edge.errors import CheckFailed
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.encoder.bottleneck_info import BottleneckInfo, WidthInfo
from runtime_edge.formats.encoder.parts import StoredFile
from runtime_edge.formats.latent_codec import LatentCodec, quantise
from runtime_edge.formats.manifest import Cut, Manifest
from runtime_edge.inference.cut_assets.bottleneck import LoadedBottleneck, with_noise
from runtime_edge.inference.prefix import Prefix
from runtime_edge.inference.self_test import self_test_waveform
from streamsplit_compile.bottleneck.block import Bottleneck, channels_of, layout_of
from streamsplit_compile.bottleneck.coding import coding_tables
from streamsplit_compile.bottleneck.hiding import HIDING_CHANNELS, LabelledActivations, LabelledWindows
from streamsplit_compile.bottleneck.pca import fit_pca, with_step
from streamsplit_compile.bottleneck.training import Trainer, TrainingSet
from streamsplit_compile.bundle.bundle_writer import write_asset
from streamsplit_compile.bundle.cut_assets.fitting import (
    BATCH,
    LEAST_WINDOWS,
    MEASURED_WINDOWS,
    Array,
    FittingPlan,
    Progress,
    Segments,
    batches_of,
    compiled,
    enough,
    windows_to_fit,
    with_info,
)
from streamsplit_compile.bundle.parity import agreement
from streamsplit_compile.bundle.quality import uncertainties
from streamsplit_compile.encoder.segment import run_segments

PCA_WINDOWS, TRAINING_WINDOWS = 256, 1024
"""The most windows of the recordings that each is fitted to."""
WIDTHS = (8, 16, 32, 64)
TRAINING_STEPS = 1000
"""Default number of training steps at each cut."""
_STEPS = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
"""Divisors to choose from: the step is the standard deviation of the first component divided by one of these."""
_FINE, _STEP_LOSS = 32.0, 0.004
"""The divisor of a step that costs nothing, and how much mean cosine of the embedding the chosen step may cost."""
_FILE_ERROR = 1e-2
"""Largest allowed difference between a compiled encoder and torch's, in steps of the latent."""
_CACHE_BYTES = 256 << 20
_NOISE_SEED = 0
"""Of the noise in coding tables and measurements; that of a device has none."""


def add_bottlenecks(
    root: Path,
    manifest: Manifest,
    variants: Sequence[str],
    segments: Segments,
    plan: FittingPlan,
    progress: Progress,
    notice: Callable[[str], None],
) -> Manifest:
    """The manifest with a bottleneck at every inner cut that can have one.

    If the recordings are too short to fit and measure them, there are none, and `notice` is called. Raises
    CheckFailed, UsageError, SourceError or FormatError.
    """
    windows, unseen = windows_to_fit(
        manifest, plan.recordings, plan.seed, TRAINING_WINDOWS if plan.steps else PCA_WINDOWS
    )
    if not enough(unseen, "bottlenecks", notice):
        return manifest
    drafts: list[BottleneckInfo] = []
    blocks: dict[str, Bottleneck] = {}
    cuts = [cut for cut in manifest.info.cuts[1:-1] if layout_of(cut) is not None]
    embeddings = torch.cat(list(batches_of(segments, windows))) if cuts else torch.empty(0)
    for place, cut in enumerate(cuts):
        progress("fitting bottlenecks", place, len(cuts))
        every = -(-len(windows) // most_windows(cut))
        activations = torch.cat(list(batches_of(segments[: cut.index], windows[::every])))
        hidden = None if plan.hidden is None else at_cut(plan.hidden, segments, cut)
        data = Fitted(activations, embeddings[::every], segments[cut.index :], hidden, plan.noise)
        what = f"training the bottleneck at {cut.name}"
        block = fit(cut, data, plan.steps, plan.seed, plan.checkpoints, functools.partial(progress, what))
        draft = write_bottleneck(root, cut, block, variants, activations, plan.steps, plan.noise)
        drafts.append(msgspec.structs.replace(draft, hides=() if hidden is None else tuple(hidden.labels)))
        blocks[cut.name] = block
    measured = measured_bottlenecks(
        root, with_info(manifest, bottlenecks=tuple(drafts)), variants, segments, unseen, blocks
    )
    return with_info(manifest, bottlenecks=tuple(measured))


@dataclass(frozen=True)
class Fitted:
    """The data that a bottleneck is fitted to."""

    activations: Tensor
    """(n, ...) float32, at the cut."""
    embeddings: Tensor
    """(n, d): the encoder's embeddings of the same windows."""
    suffix: Segments
    hidden: LabelledActivations | None = None
    """Recordings whose labels the latents should not tell; only training hides anything."""
    noise: float = 0.0
    """Standard deviation of the noise that devices add, in steps."""


def at_cut(hidden: LabelledWindows, segments: Segments, cut: Cut) -> LabelledActivations:
    """The labelled windows as activations at a cut, fewer of them if activations are large."""
    every = -(-len(hidden.windows) // most_windows(cut))
    activations = torch.cat(list(batches_of(segments[: cut.index], hidden.windows[::every])))
    # A copy: autograd cannot save tensors that were made in inference mode.
    return LabelledActivations(
        activations.clone(), {name: torch.from_numpy(found[::every]) for name, found in hidden.labels.items()}
    )


def fit(
    cut: Cut,
    data: Fitted,
    steps: int,
    seed: int,
    checkpoints: Path | None,
    progress: Callable[[int, int], None] = lambda done, steps: None,
    widths: Sequence[int] | None = None,
    begin: Bottleneck | None = None,
) -> Bottleneck:
    """Fit the block of one cut: in closed form, then by `steps` of training on all widths, or on those in `widths`.

    With `begin`, training continues from that block. Without `checkpoints`, an interrupted run is lost.
    """
    block = closed_form(cut, data) if begin is None else begin
    if not steps:
        return block
    # Copies: autograd cannot save tensors that were made in inference mode.
    suffix = TrainingSet(
        data.activations.clone(),
        data.embeddings.clone(),
        lambda value: run_segments(data.suffix, value),
        data.hidden,
        data.noise,
    )
    trainer = Trainer(block, suffix, widths or widths_of(block), steps, seed)
    hidden: list[object] = [] if data.hidden is None else [*data.hidden.labels, len(data.hidden.activations)]
    hidden += [data.noise] if data.noise else []
    said = " ".join(map(str, (steps, seed, widths, len(data.activations), *hidden)))
    key = hashlib.sha256(block.to_bytes() + said.encode()).hexdigest()
    with _frozen(data.suffix):
        return trainer.run(None if checkpoints is None else checkpoints / f"{key[:16]}.pt", progress)


def closed_form(cut: Cut, data: Fitted) -> Bottleneck:
    """The block of one cut by principal components, with the coarsest step that costs little."""
    layout = layout_of(cut)
    assert layout is not None
    most = channels_of(layout) if data.hidden is None else min(channels_of(layout), HIDING_CHANNELS)
    block, deviation = fit_pca(layout, torch.split(data.activations, BATCH), most)
    return _coarsest(block, deviation or 1.0, data)


def most_windows(cut: Cut) -> int:
    """How many windows to fit to: fewer if activations are large, since all are in memory at once."""
    return max(LEAST_WINDOWS, _CACHE_BYTES // (4 * cut.values))


@contextlib.contextmanager
def _frozen(segments: Segments) -> Iterator[None]:
    """Compute no gradients for these weights while the block runs: their encoder may be in training."""
    trained = [value for segment in segments for value in segment.parameters() if value.requires_grad]
    for value in trained:
        value.requires_grad_(False)
    try:
        yield
    finally:
        for value in trained:
            value.requires_grad_(True)


def _coarsest(block: Bottleneck, deviation: float, data: Fitted) -> Bottleneck:
    """The block with the coarsest step that costs little."""
    some = data.activations[:: -(-len(data.activations) // MEASURED_WINDOWS)]
    expected = data.embeddings[:: -(-len(data.activations) // MEASURED_WINDOWS)]

    def similarity(candidate: Bottleneck) -> float:
        with torch.inference_mode():
            latents = candidate.encode(some).clamp(-128, 127).round()
            found = run_segments(data.suffix, candidate.decode(latents))
            return float(functional.cosine_similarity(found, expected).mean())

    best = similarity(with_step(block, deviation / _FINE))
    for parts in _STEPS:
        scaled = with_step(block, deviation / parts)
        if similarity(scaled) >= best - _STEP_LOSS:
            break
    return scaled


def widths_of(block: Bottleneck) -> list[int]:
    """The widths that are fitted and measured, the narrowest first."""
    channels = block.analysis.out_channels
    return sorted({width for width in WIDTHS if width < channels} | {channels})


def write_bottleneck(
    root: Path,
    cut: Cut,
    block: Bottleneck,
    variants: Sequence[str],
    activations: Tensor,
    steps: int,
    noise: float = 0.0,
) -> BottleneckInfo:
    """Write the assets of one bottleneck, with coding tables for these activations; it has no measurements yet."""
    with torch.inference_mode():
        latents = torch.cat([block.encode(batch) for batch in torch.split(activations, BATCH)])
    noisy = with_noise(latents.numpy(), noise, np.random.default_rng(_NOISE_SEED))
    decoder, tables = block.to_bytes(), coding_tables(quantise(noisy))
    return BottleneckInfo(
        cut=cut.name,
        shape=block.latent_shape,
        files=compiled(root, "bottleneck", block, cut.shape, variants),
        decoder=StoredFile(file=write_asset(root, "bottleneck.npz", decoder), bytes=len(decoder)),
        coding=StoredFile(file=write_asset(root, "coding.bin", tables), bytes=len(tables)),
        widths=tuple(WidthInfo(width=width, bytes=0, bytes_p99=0, wire={}) for width in widths_of(block)),
        self_test={},
        macs=block.analysis.weight.numel() * block.latent_shape[2] * block.latent_shape[3],
        fitted_by="training" if steps else "pca",
        steps=steps,
        noise=noise,
    )


def measured_bottlenecks(
    root: Path,
    manifest: Manifest,
    variants: Sequence[str],
    segments: Segments,
    windows: Array,
    blocks: Mapping[str, Bottleneck],
) -> list[BottleneckInfo]:
    """The manifest's bottlenecks with measurements of (prefix, bottleneck, wire, decoder, suffix) on some windows."""
    found = list(manifest.info.bottlenecks)
    if not found:
        return found
    expected = torch.cat(list(batches_of(segments, windows)))
    front_end = manifest.info.front_end
    chirp = self_test_waveform(front_end.window_samples, front_end.sample_rate)
    for variant in variants:
        prefix = Prefix(Bundle(root, manifest, "", None), variant)
        devices = [LoadedBottleneck(prefix, info) for info in found]
        latents = _latents(prefix, devices, [*windows, chirp], blocks)
        for index, (info, device, values) in enumerate(zip(found, devices, latents, strict=True)):
            cut = manifest.cut_named(info.cut).index
            wire = _Wire(variant, variant == variants[0], device.codec, blocks[info.cut], segments[cut:], info.noise)
            widths = tuple(wire.measure(width, values[:-1], expected) for width in info.widths)
            means = values[-1][0].mean(axis=(1, 2)).astype("<f4").tobytes()
            found[index] = msgspec.structs.replace(info, widths=widths, self_test={**info.self_test, variant: means})
    return found


def _latents(
    prefix: Prefix, devices: Sequence[LoadedBottleneck], windows: Sequence[Array], blocks: Mapping[str, Bottleneck]
) -> list[list[Array]]:
    """Latents of each window from each bottleneck, computed by the device runtime.

    Raises CheckFailed when they differ from torch's for the same activation.
    """
    found: list[list[Array]] = [[] for _ in devices]
    cuts = {cut.name: cut.index for cut in prefix.bundle.manifest.info.cuts}
    for window in windows:
        prefix.start(window)
        for device, collected in zip(devices, found, strict=True):
            prefix.advance(cuts[device.info.cut])
            collected.append(device.latent().copy())
    for device, collected in zip(devices, found, strict=True):
        with torch.inference_mode():
            exact = blocks[device.info.cut].encode(torch.from_numpy(prefix.buffers[cuts[device.info.cut]])).numpy()
        error = float(np.abs(collected[-1] - exact).max())
        if not error <= _FILE_ERROR:
            raise CheckFailed(f"bottleneck at {device.info.cut}: compiled it is off by {error:.1e} steps from torch's")
    return found


@dataclass(frozen=True)
class _Wire:
    """Turns latents into embeddings as the wire and the server do."""

    variant: str
    """The prefix's variant."""
    is_first: bool
    """Whether the reported bytes are those of this variant."""
    codec: LatentCodec
    block: Bottleneck
    suffix: Segments
    noise: float

    def measure(self, width: WidthInfo, latents: Sequence[Array], expected: Tensor) -> WidthInfo:
        """A width with the bytes shipped for some windows, and how close their embeddings are to `expected` (n, d)."""
        random = np.random.default_rng(_NOISE_SEED)
        sent = [self.codec.encode(with_noise(latent, self.noise, random), width.width) for latent in latents]
        arrived = np.concatenate([self.codec.decode(*payload, width.width) for payload in sent])
        with torch.inference_mode():
            embeddings = run_segments(self.suffix, self.block.decode(torch.from_numpy(arrived)))
        near = agreement(embeddings, expected, uncertainties(expected.numpy()))
        sizes = [len(payload) for payload, _ in sent]
        measured = msgspec.structs.replace(width, wire={**width.wire, self.variant: near})
        if not self.is_first:
            return measured
        return msgspec.structs.replace(
            measured, bytes=int(np.median(sizes)), bytes_p99=int(np.ceil(np.percentile(sizes, 99)))
        )
