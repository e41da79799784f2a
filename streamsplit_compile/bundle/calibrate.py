"""Calibration: the windows to calibrate on, and the range and wire bytes of each cut's activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from runtime_edge.errors import CheckFailed
from runtime_edge.formats.codec import CutCodec, channel_axis, int8_scale
from runtime_edge.formats.manifest import BundleInfo, Calibration, Cut, Int8Scale
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.bundle.recordings import sample_windows
from streamsplit_compile.bundle.soundscape import soundscape

Array = npt.NDArray[Any]
DEFAULT_WINDOWS = 16
RECORDINGS = "recordings"
"""Source of a calibration on recordings; measurements used other windows of the same recordings."""
SOUNDSCAPE = "soundscapes"
"""Source of a calibration without recordings; measurements used windows of another seed. Until 0.2 they used the same
windows, and the source was "synthetic soundscape"."""
TOO_FEW = "recordings, too few to measure on others"
_APART = {RECORDINGS: "recordings", SOUNDSCAPE: "a synthesised soundscape"}
"""Text for people, by source, of calibrations whose measurements used other windows."""


class CutFailed(CheckFailed):
    """A check of one cut failed."""

    def __init__(self, cut: str, reason: str) -> None:
        super().__init__(f"cut {cut}: {reason}")
        self.cut = cut
        """The cut's name."""


def calibration_windows(
    directory: Path | None, sample_rate: int, window: int, hop: int, count: int, seed: int
) -> tuple[npt.NDArray[np.float32], Calibration]:
    """`count` windows (count, window) float32, spread over a directory's recordings; the seed chooses them.

    Without a directory they come from the seeded soundscape, and the calibration says so. Raises UsageError when
    the directory holds less than one window, SourceError when it cannot be read.
    """
    if directory is None:
        audio = soundscape((window + (count - 1) * hop) / sample_rate, sample_rate, seed)
        found = np.stack([audio[i * hop : i * hop + window] for i in range(count)])
        return found, Calibration(source=SOUNDSCAPE, windows=count, seed=seed)
    found = sample_windows(directory, sample_rate, window, hop, count, seed)
    return found, Calibration(source=RECORDINGS, windows=len(found), seed=seed)


@dataclass(frozen=True)
class CalibrationSet:
    """Windows to calibrate on, and others to measure the result on."""

    windows: npt.NDArray[np.float32]
    """(n, samples)."""
    unseen: npt.NDArray[np.float32] | None
    """(m, samples): windows that share no sample with `windows`; None if there are none."""
    said: Calibration
    recordings: Path | None = None
    """The recordings that they come from, which have more; None for a soundscape."""

    @property
    def measured(self) -> npt.NDArray[np.float32]:
        """The windows that parity and agreement are measured on: the unseen ones, if there are any."""
        return self.windows if self.unseen is None else self.unseen


def calibration_set(
    directory: Path | None, sample_rate: int, window: int, hop: int, count: int, seed: int
) -> CalibrationSet:
    """`calibration_windows`, and at most as many others from the same recordings. Raises the same errors.

    Without a directory, the others come from a soundscape with another seed.
    """
    found, said = calibration_windows(directory, sample_rate, window, hop, count, seed)
    if directory is None:
        unseen, _ = calibration_windows(None, sample_rate, window, hop, count, seed + 1)
        return CalibrationSet(found, unseen, said)
    unseen = sample_windows(directory, sample_rate, window, hop, count, seed, unseen=True)
    if not len(unseen):
        return CalibrationSet(found, None, msgspec.structs.replace(said, source=TOO_FEW), directory)
    return CalibrationSet(found, unseen, said, directory)


def calibration_set_for(info: BundleInfo, directory: Path | None) -> CalibrationSet:
    """A calibration set as large as the one a bundle was made with, for a recompile or a check."""
    front_end, made = info.front_end, info.calibration
    return calibration_set(
        directory, front_end.sample_rate, front_end.window_samples, front_end.hop_samples, made.windows, made.seed
    )


def calibration_text(info: BundleInfo) -> str:
    """Text for people: what a bundle was calibrated and measured on."""
    made = info.calibration
    measured = max((parity.windows for parity in info.parity.values()), default=0)
    if made.source in _APART:
        others = f"errors and agreement are of {measured} others" if measured else "nothing was measured"
        return f"calibrated on {made.windows} windows of {_APART[made.source]}; {others}"
    source = (
        RECORDINGS if made.source.endswith(" windows of recordings") else made.source
    )  # sources had the number of recordings until 0.1
    same = "calibrated and measured on the same" if measured else "nothing was measured; calibrated on"
    return f"{same} {made.windows} windows: {source}"


def collect_activations(prefix: Prefix, windows: npt.NDArray[np.float32]) -> list[Array]:
    """Run windows through the compiled blocks; returns each cut's activations, (windows, *cut.shape) float32."""
    collected: list[list[Array]] = [[] for _ in prefix.buffers]
    for window in windows:
        prefix.start(window)
        for cut in range(prefix.last_cut + 1):
            collected[cut].append(prefix.advance(cut).copy())
    return [np.stack(values) for values in collected]


def calibrate_cut(cut: Cut, activations: Array) -> Cut:
    """The cut with int8 scales from the range of `activations` (windows, *shape), and with its bytes by encoding.

    Raises CutFailed when an activation is NaN or infinite.
    """
    if not np.isfinite(activations).all():
        raise CutFailed(cut.name, "the encoder gives NaN or infinite values there; check its weights")
    if cut.index > 0:
        cut = msgspec.structs.replace(cut, int8=_int8_scale(cut.shape, activations))
    return msgspec.structs.replace(cut, bytes={name: wire_bytes(cut, name, activations) for name in encodings(cut)})


def encodings(cut: Cut) -> Sequence[str]:
    """The wire encodings that make sense at a cut: PCM for the waveform, int8 for activations."""
    return ("float32", "pcm16") if cut.index == 0 else ("float32", "float16", "int8")


def wire_bytes(cut: Cut, encoding: str, activations: Array) -> int:
    """Median payload bytes over the windows, zstd included."""
    codec = CutCodec(cut, encoding)
    return int(np.median([len(codec.encode(activation)[0]) for activation in activations]))


def _int8_scale(shape: tuple[int, ...], activations: Array) -> Int8Scale:
    axis = channel_axis(shape)
    if len(shape) == 3 and len(activations) > 1:
        # (N, C, T) or (N, T, D): take the axis whose ranges, learnt from half of the windows, fit the other half best.
        axis = min((1, 2), key=lambda candidate: _misfit(activations[::2], activations[1::2], candidate))
    scale, zero = _ranges(activations, axis)
    return Int8Scale(axis=axis, scale=scale.tobytes(), zero_point=zero.tobytes())


def _ranges(activations: Array, axis: int) -> tuple[Array, Array]:
    others = tuple(i for i in range(activations.ndim) if i != axis + 1)
    return int8_scale(activations.min(axis=others), activations.max(axis=others))


def _misfit(seen: Array, unseen: Array, axis: int) -> float:
    """Mean squared error of unseen activations quantised with the ranges of seen ones."""
    along = [1] * unseen.ndim
    along[axis + 1] = -1
    scale, zero = (values.astype(np.float32).reshape(along) for values in _ranges(seen, axis))
    quantised = np.clip(np.rint(unseen / scale + zero), -128, 127)
    return float(np.mean(((quantised - zero) * scale - unseen) ** 2))
