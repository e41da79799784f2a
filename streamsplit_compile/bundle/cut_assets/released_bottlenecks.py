"""Bottlenecks of a release: kept from the previous generation, or refitted to windows that devices sent.

manifest = keep_bottlenecks(root, base, manifest, variants, reference, windows)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.encoder.bottleneck_info import BottleneckInfo
from runtime_edge.formats.manifest import Manifest
from runtime_edge.inference.cut_assets.bottleneck import LoadedBottleneck
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.bottleneck.block import Bottleneck, read_bottleneck
from streamsplit_compile.bottleneck.training import widened
from streamsplit_compile.bundle.cut_assets.bottlenecks import (
    Fitted,
    fit,
    measured_bottlenecks,
    most_windows,
    write_bottleneck,
)
from streamsplit_compile.bundle.cut_assets.fitting import (
    ALLOWED_LOSS,
    BATCH,
    LEAST_WINDOWS,
    MEASURED_WINDOWS,
    Array,
    Segments,
    batches_of,
    link_assets,
    with_info,
)
from streamsplit_compile.bundle.measure import ArrivedWindows, Reference
from streamsplit_compile.encoder.segment import run_segments

LEAST_JUDGING = 8
"""The fewest windows from devices, none of them used in training, that a bottleneck may be judged on."""
WORTH_FETCHING = 0.005
"""How much cosine, averaged over the widths, a refitted bottleneck must gain over the previous one, which devices
already have."""


def keep_bottlenecks(
    root: Path, base: Bundle, manifest: Manifest, variants: Sequence[str], reference: Reference | None, windows: Array
) -> Manifest:
    """The manifest of new weights with the base's bottlenecks, or with ones refitted to windows that devices sent.

    They are measured on windows that devices sent and nothing was fitted to, or else on the reference's, or on
    `windows`. A refitted bottleneck replaces the base's if it keeps more of the embedding. A width whose median cosine
    is more than ALLOWED_LOSS below what it was with the base's weights is withdrawn, and so is a bottleneck without
    widths. Without a reference all are withdrawn.
    """
    if reference is None or not base.manifest.info.bottlenecks:
        return with_info(manifest, bottlenecks=())
    unseen = _measured_on(reference, windows)
    carried, blocks, drafts = {}, {}, []
    for info in base.manifest.info.bottlenecks:
        cut = manifest.cut_named(info.cut)
        carried[info.cut] = read_bottleneck(base.read(info.decoder.file), cut, str(base.path))
        anew = _fitted_anew(root, manifest, info, carried[info.cut], variants, reference, unseen)
        if anew is None:
            link_assets(base, root, info)
        draft, blocks[info.cut] = (info, carried[info.cut]) if anew is None else anew
        drafts.append(draft)
    drafted = with_info(manifest, bottlenecks=tuple(drafts))
    before = _similarities(base, variants[0], carried, unseen)
    after = _similarities(Bundle(root, drafted, "", None), variants[0], blocks, unseen)
    kept = []
    for info in measured_bottlenecks(root, drafted, variants, reference.segments, unseen, blocks):
        places = [(info.cut, width.width) for width in info.widths]
        # A width that an earlier release withdrew comes back with a refitted bottleneck.
        good = [after[place] >= before.get(place, -1.0) - ALLOWED_LOSS for place in places]
        if any(good):
            kept.append(msgspec.structs.replace(info, widths=tuple(itertools.compress(info.widths, good))))
    return with_info(manifest, bottlenecks=tuple(kept))


def _measured_on(reference: Reference, windows: Array) -> Array:
    """Windows (n, samples) that nothing was fitted to: those that devices sent, if there are enough."""
    sent = None if reference.arrived is None else reference.arrived.unseen.get(0)
    if sent is not None and len(sent) >= LEAST_JUDGING:
        found: Array = sent[:MEASURED_WINDOWS].numpy()
        return found
    return windows if reference.windows is None else reference.windows


def _fitted_anew(
    root: Path,
    manifest: Manifest,
    info: BottleneckInfo,
    carried: Bottleneck,
    variants: Sequence[str],
    reference: Reference,
    unseen: Array,
) -> tuple[BottleneckInfo, Bottleneck] | None:
    """A bottleneck fitted to windows that arrived at its cut or before; None if they are too few or it is no better.

    It must be better on arrived windows that nothing was fitted to, and no width may lose so much on `unseen` that it
    would be withdrawn. One that hides something or ships with noise is never fitted anew, since no labels of what it
    hides arrive.
    """
    cut, arrived, segments = manifest.cut_named(info.cut), reference.arrived, reference.segments
    if arrived is None or info.hides or info.noise:
        return None
    suffix = segments[cut.index :]
    activations = ArrivedWindows.at(cut.index, arrived.fit, segments)[: most_windows(cut)]
    others = ArrivedWindows.at(cut.index, arrived.unseen, segments)
    if len(activations) < LEAST_WINDOWS or len(others) < LEAST_JUDGING:
        return None
    steps = arrived.bottleneck_steps if info.fitted_by == "training" else 0
    data = Fitted(activations, _embeddings(activations, suffix), suffix)
    block = fit(cut, data, steps, manifest.info.calibration.seed, None, begin=carried if steps else None)
    widths = [width.width for width in info.widths]
    gains = _closeness(block, widths, others, suffix) - _closeness(carried, widths, others, suffix)
    measured = torch.cat(list(batches_of(segments[: cut.index], unseen)))
    losses = _closeness(carried, widths, measured, suffix) - _closeness(block, widths, measured, suffix)
    if gains.mean() < WORTH_FETCHING or losses.max() > ALLOWED_LOSS:
        return None
    return write_bottleneck(root, cut, block, variants, activations, steps and info.steps + steps), block


def _embeddings(activations: Tensor, suffix: Segments) -> Tensor:
    with torch.inference_mode():
        return torch.cat([run_segments(suffix, batch) for batch in torch.split(activations, BATCH)])


def _closeness(block: Bottleneck, widths: Sequence[int], activations: Tensor, suffix: Segments) -> Tensor:
    """For each width the median cosine between embeddings with and without the bottleneck."""
    whole, found = _embeddings(activations, suffix), []
    with torch.inference_mode():
        latents = block.encode(activations).clamp(-128, 127).round()
        for width in widths:
            arrived = block.decode(widened(latents[:, :width], latents.shape[1]))
            found.append(functional.cosine_similarity(_embeddings(arrived, suffix), whole).median())
    return torch.stack(found)


def _similarities(
    bundle: Bundle, variant: str, blocks: Mapping[str, Bottleneck], windows: Array
) -> dict[tuple[str, int], float]:
    """For each cut and width the median cosine of embeddings through the bottleneck with the whole encoder's.

    Everything runs on compiled blocks, so this also works for weights that are not available in torch.
    """
    prefix = Prefix(bundle, variant)
    devices = [(bundle.manifest.cut_named(info.cut).index, LoadedBottleneck(prefix, info))
               for info in bundle.manifest.info.bottlenecks]  # fmt: skip
    found: dict[tuple[str, int], list[float]] = {}
    for window in windows:
        prefix.start(window)
        latents = []
        for cut, device in devices:
            prefix.advance(cut)
            latents.append(device.latent().copy())
        whole = prefix.advance(prefix.last_cut)[0].copy()
        for (cut, device), latent in zip(devices, latents, strict=True):
            for width in [measured.width for measured in device.info.widths]:
                arrived = device.codec.decode(*device.codec.encode(latent, width), width)
                with torch.inference_mode():
                    prefix.resume(cut, blocks[device.info.cut].decode(torch.from_numpy(arrived)).numpy())
                embedding = prefix.advance(prefix.last_cut)[0]
                cosine = float(embedding @ whole / (np.linalg.norm(embedding) * np.linalg.norm(whole) + 1e-30))
                found.setdefault((device.info.cut, width), []).append(cosine)
    return {place: float(np.median(cosines)) for place, cosines in found.items()}
