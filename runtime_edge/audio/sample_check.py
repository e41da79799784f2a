"""Checks the samples of a source; reports each kind of fault once, with its position and extent."""

from __future__ import annotations

import logging
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from runtime_edge.audio.audio_block import Counters

_LOG = logging.getLogger(__name__)
_JUDGED_AFTER_S = 10.0
_STRETCH_S = 1.0
_LOOK_S, _LOOK_SAMPLES = 4.0, 1 << 17
"""How much audio is checked at once: checking between any two windows of a device would take several times as long."""
_LEAST_SHARE = 1e-4
"""Share below which samples beyond full scale are counted but not reported: decoders of lossy formats overshoot."""
_OFFSET = 0.01
_QUIET = 1e-10
"""Mean square below which channels are as good as silent."""
_CANCELLED = 0.1
"""Share of the energy that a mix of unrelated channels would have; below it, the channels cancel each other out."""
_WRONG = {
    "clipped": "of its samples are beyond full scale, and clipped: scale the recording to [-1, 1]",
    "bad": "of its samples are not numbers, and silenced: look at what wrote it",
    "cancelled": "of it has channels that cancel each other when they are mixed: choose one with --channel",
    "offset": "of it has a constant offset beyond 1 % of full scale: look at the microphone or the converter",
}
_Floats = NDArray[np.float32]


class SampleCheck:
    """Checks a source's samples as they pass; `counters` holds the counts of all recordings.

    `averages`: whether channels are averaged, so that they may cancel each other out.
    """

    def __init__(self, counters: Counters, averages: bool) -> None:
        self._counters, self._averages = counters, averages
        self._begin("", 1)

    def begin(self, name: str | None, rate_hz: int) -> None:
        """Begin another recording, or a stream (None)."""
        self.end()
        self._begin(name or "the source", rate_hz)

    def _begin(self, name: str, rate_hz: int) -> None:
        self._name, self._rate_hz, self._enough = name, rate_hz, min(_LOOK_S * rate_hz, _LOOK_SAMPLES)
        self._unseen: list[tuple[_Floats, _Floats]] = []
        self._unseen_samples = 0
        self._samples = 0  # samples checked so far
        self._earlier_offset: float | None = None
        self._counts: dict[str, float] = defaultdict(float)
        self._first: dict[str, int] = {}

    def mended(self, bad: int, clipped: int, channels: int) -> None:
        """Note how many values of the next frames were not numbers, and how many were clipped."""
        self._counters.bad_samples += bad
        self._counters.clipped_samples += clipped
        for kind, count in (("bad", bad), ("clipped", clipped)):
            if count:
                self._found(kind, count / channels, self._samples + self._unseen_samples)

    def heard(self, frames: _Floats, mono: _Floats) -> None:
        """Take cleaned float32[n, channels] and their mix float32[n]."""
        self._unseen.append((frames, mono))
        self._unseen_samples += len(mono)
        if self._unseen_samples >= self._enough:
            self._look()

    def _look(self) -> None:
        """Check the whole stretches of what was heard since the last check."""
        size = round(_STRETCH_S * self._rate_hz)
        count = self._unseen_samples // size
        if count:
            frames = np.concatenate([frames for frames, _ in self._unseen])
            mono = np.concatenate([mono for _, mono in self._unseen])
            self._unseen, self._unseen_samples = [], len(mono) - count * size
            if self._unseen_samples:
                self._unseen.append((frames[count * size :], mono[count * size :]))
            self._judge(frames[: count * size].reshape(count, size, -1), mono[: count * size].reshape(count, size))
        if self._first and self._samples >= min(self._first.values()) + _JUDGED_AFTER_S * self._rate_hz:
            self._tell()

    def end(self) -> None:
        """End the recording or the stream."""
        self._look()
        self._tell()

    def _found(self, kind: str, count: float, at: int) -> None:
        self._counts[kind] += count
        if kind not in self._counters.told:
            self._first.setdefault(kind, at)

    def _judge(self, frames: _Floats, mono: _Floats) -> None:
        """Check stretches (n, samples, channels) and their mixes (n, samples)."""
        count, size, channels = frames.shape
        cancelled = np.zeros(count, bool)
        if self._averages and channels > 1:
            energy, mixed = np.mean(frames**2, axis=(1, 2)), np.mean(mono**2, axis=1) * channels
            cancelled = (energy > _QUIET) & (mixed < _CANCELLED * energy)
        for offset, is_cancelled in zip(mono.mean(axis=1).tolist(), cancelled.tolist(), strict=True):
            if is_cancelled:
                self._found("cancelled", size, self._samples)
                self._counters.cancelled_samples += size
            earlier, is_offset = self._earlier_offset, abs(offset) > _OFFSET
            if is_offset and (earlier is None or offset * earlier > 0):  # the stretch before had it, too
                self._found("offset", size, self._samples)
                self._counters.offset_samples += size
            self._earlier_offset = offset if is_offset else 0.0
            self._samples += size

    def _tell(self) -> None:
        for kind, first in self._first.items():
            share = self._counts[kind] / (self._samples + self._unseen_samples)
            at_s = first / self._rate_hz
            if kind == "clipped" and share < _LEAST_SHARE:
                continue
            _LOG.warning("%s: %.3g %% %s (first at %.1f s)", self._name, 100 * share, _WRONG[kind], at_s)
            self._counters.told += (kind,)
        self._first = {}
