"""What a way of shipping costs in accuracy: every labelled clip through the real device, broker and server.

Nothing is shaped or paced here: an embedding does not depend on when it comes. A policy that chooses among cuts is
given, for each window, the embedding of the cut that it took in its run of a scenario.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import soundfile

from runtime_edge.errors import CheckFailed, UsageError
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_server.lab.clips import (
    CLIP_SAMPLES,
    SAMPLE_RATE,
    Array,
    cross_validated,
    load_clips,
    precision_at_10,
    silhouette,
)
from runtime_server.lab.policy_arms import Policy
from runtime_server.lab.session import Lab, ResultLines

_TIMEOUT_S = 600.0


class Accuracy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How well the embeddings of clips, each the mean of its windows, tell the classes apart."""

    probe: float
    """Linear probe, mean over the folds."""
    precision_at_10: float
    silhouette: float
    clips: int


class Recordings:
    """The clips one after the other in one file, as a device hears them."""

    def __init__(self, root: Path, work: Path, every: int, front_end: FrontEndInfo) -> None:
        """Takes every `every`-th clip. Raises FormatError, or UsageError when clips are no whole number of hops."""
        clips = load_clips(root)
        self.clips = clips.select(np.arange(0, len(clips.labels), every))
        length = CLIP_SAMPLES * front_end.sample_rate // SAMPLE_RATE  # of a clip, as the encoder hears it
        if length % front_end.hop_samples:
            raise UsageError(f"clips of {length} samples are not a whole number of hops of {front_end.hop_samples}")
        self.path = work / "clips.wav"
        soundfile.write(self.path, self.clips.waveforms.ravel(), SAMPLE_RATE, subtype="PCM_16")
        total = length * len(self.clips.labels)
        starts = np.arange(0, total - front_end.window_samples + 1, front_end.hop_samples)
        clip = starts // length
        self.windows = starts.size
        self.clip_of = np.where(clip == (starts + front_end.window_samples - 1) // length, clip, -1)
        """Of each window; -1 for one that hears two clips."""

    def score(self, embeddings: Array) -> Accuracy:
        """Of window embeddings (windows, d)."""
        whole = np.stack([embeddings[self.clip_of == clip].mean(0) for clip in range(len(self.clips.labels))])
        return Accuracy(
            round(cross_validated(whole, self.clips), 4),
            round(precision_at_10(whole, self.clips), 4),
            round(silhouette(whole, self.clips), 4),
            len(whole),
        )


async def embeddings_of(lab: Lab, policy: Policy, recordings: Recordings) -> Array:
    """(windows, d): what a device that takes one cut gets, as fast as it can. Raises CheckFailed."""
    options = ("--no-realtime", "--deadline-ms", "10000", "--max-windows", str(recordings.windows))
    async with lab.device(policy, recordings.path, *options, paced=False) as device:
        lines = ResultLines(device)
        reading = asyncio.create_task(lines.read())
        await device.finish(_TIMEOUT_S)
        await reading
    results = [heard.result for heard in lines.heard]
    astray = [r for r in results if r.cut != policy.cut or r.finished == "fallback"]
    if astray or len(results) != recordings.windows:
        ways = sorted({f"{result.cut} {result.finished}" for result in astray})
        raise CheckFailed(f"{policy.name}: {len(results)} of {recordings.windows} windows, {len(astray)} by {ways}")
    found = np.zeros((recordings.windows, len(results[0].embedding)), np.float32)
    for result in results:
        found[result.window] = result.embedding
    return found


def mixed(by_cut: Mapping[str, Array], sequence: Sequence[str]) -> Array:
    """(windows, d): for each window the embedding of the cut in `sequence`, which is repeated as often as needed."""
    windows = len(next(iter(by_cut.values())))
    return np.stack([by_cut[sequence[index % len(sequence)]][index] for index in range(windows)])
