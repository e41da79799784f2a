"""The data that bottlenecks and exits are fitted to: windows of recordings, with activations and embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.encoder.bottleneck_info import BottleneckInfo
from runtime_edge.formats.encoder.exit_info import ExitInfo
from runtime_edge.formats.encoder.parts import VariantInfo
from runtime_edge.formats.manifest import Manifest
from streamsplit_compile.bottleneck.hiding import LabelledWindows
from streamsplit_compile.bottleneck.lowering import lower_small
from streamsplit_compile.bundle.blocks import split_variant
from streamsplit_compile.bundle.bundle_writer import link_asset, write_asset
from streamsplit_compile.bundle.recordings import sample_windows
from streamsplit_compile.encoder.segment import run_segments
from streamsplit_compile.lowering import artifact_formats
from streamsplit_compile.lowering.artifact_formats import Format

LEAST_WINDOWS = 32
MEASURED_WINDOWS = 64
ALLOWED_LOSS = 0.02
"""How much median cosine a width or an exit may lose in a release and still be kept."""
BATCH = 32
Array = npt.NDArray[np.float32]
Progress = Callable[[str, int, int], None]
Segments = Sequence[fx.GraphModule]


@dataclass(frozen=True)
class FittingPlan:
    """How, and on which data, bottlenecks and exits are fitted."""

    recordings: Path
    steps: int
    """Training steps for each bottleneck; 0 for the closed form."""
    seed: int
    checkpoints: Path
    """Folder for the checkpoints of interrupted training."""
    hidden: LabelledWindows | None = None
    """Recordings whose labels trained bottlenecks should not tell."""
    noise: float = 0.0
    """Standard deviation of the noise that devices add to latents, in steps."""


def checkpoints_of(out: Path) -> Path:
    """The folder that keeps training checkpoints until the bundle `out` is complete."""
    return out.with_name(f"{out.name}.bottlenecks")


def windows_to_fit(manifest: Manifest, recordings: Path, seed: int, count: int) -> tuple[Array, Array]:
    """At most `count` windows to fit to, and others to measure on; short recordings give fewer."""
    front_end = manifest.info.front_end
    shape = front_end.sample_rate, front_end.window_samples, front_end.hop_samples
    while True:
        unseen = sample_windows(recordings, *shape, count, seed, unseen=True)
        if len(unseen) >= LEAST_WINDOWS or count <= LEAST_WINDOWS:
            break
        count //= 2
    chosen = np.linspace(0, len(unseen) - 1, min(MEASURED_WINDOWS, len(unseen))).astype(int)
    return sample_windows(recordings, *shape, count, seed), unseen[chosen]


def enough(unseen: Array, what: str, notice: Callable[[str], None]) -> bool:
    """Whether there are enough windows to fit and measure `what` on; if not, `notice` says that it is left out."""
    if len(unseen) < LEAST_WINDOWS:
        notice(f"no {what}: the recordings are too short to fit and measure them on {LEAST_WINDOWS} windows each")
    return len(unseen) >= LEAST_WINDOWS


def link_assets(base: Bundle, root: Path, info: BottleneckInfo | ExitInfo) -> None:
    """Link all files of a cut's bottleneck or exit from another bundle."""
    for file, _ in info.assets():
        link_asset(base, root, file)


def batches_of(segments: Segments, windows: Array) -> Iterator[Tensor]:
    """Run windows through neighbouring segments; yields the results in batches."""
    with torch.inference_mode():
        for start in range(0, len(windows), BATCH):
            yield run_segments(segments, torch.from_numpy(windows[start : start + BATCH]))


def compiled(
    root: Path, name: str, block: torch.nn.Module, shape: tuple[int, ...], variants: Sequence[str]
) -> dict[Format, VariantInfo]:
    """Write a module that follows a cut in float32 in each format of the variants: `<name>.onnx`, `<name>.tflite`."""
    files: dict[Format, VariantInfo] = {}
    for format_name in dict.fromkeys(split_variant(variant)[0] for variant in variants):
        data = lower_small(format_name, block, shape)
        files[format_name] = VariantInfo(
            format=format_name,
            precision="fp32",
            file=write_asset(root, f"{name}.{format_name}", data),
            bytes=len(data),
            input=artifact_formats.INPUT,
            output=artifact_formats.OUTPUT,
        )
    return files


def with_info(manifest: Manifest, **changes: object) -> Manifest:
    """The manifest with some fields of its `info` changed."""
    info = msgspec.structs.replace(manifest.info, **changes)
    metadata = msgspec.structs.replace(manifest.additional_metadata, ssc=info)
    return msgspec.structs.replace(manifest, additional_metadata=metadata)
