"""What is wrong with the samples of a source, said once for each kind: where it begins, and how much it is."""

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
"""How much is looked at together: between two windows of a device it would take several times as long."""
_LEAST_SHARE = 1e-4
"""Below, samples beyond full scale are counted and not told: decoders of lossy formats overshoot."""
_OFFSET = 0.01
_QUIET = 1e-10
"""Mean square of channels that are as good as silent."""
_CANCELLED = 0.1
"""Of the energy that the mix of channels without a relation would have."""
_WRONG = {
    "clipped": "of its samples are beyond full scale, and clipped: scale the recording to [-1, 1]",
    "bad": "of its samples are not numbers, and silenced: look at what wrote it",
    "cancelled": "of it has channels that cancel each other when they are mixed: choose one with --channel",
    "offset": "of it has a constant offset beyond 1 % of full scale: look at the microphone or the converter",
}
_Floats = NDArray[np.float32]


class SampleCheck:
    """Looks at a source's samples as they pass; `counters` has the counts of every recording.

    `averages`: whether channels are mixed, so that they may cancel each other.
    """

    def __init__(self, counters: Counters, averages: bool) -> None:
        self._counters, self._averages = counters, averages
        self._told: set[str] = set()
        self._begin("", 1)

    def begin(self, name: str | None, rate_hz: int) -> None:
        """Another recording begins, or a stream (None)."""
        self.end()
        self._begin(name or "the source", rate_hz)

    def mended(self, bad: int, clipped: int, channels: int) -> None:
        """So many values of the next frames were not numbers, and so many were clipped."""
        self._counters.bad_samples += bad
        self._counters.clipped_samples += clipped
        for kind, count in (("bad", bad), ("clipped", clipped)):
            if count:
                self._found(kind, count / channels, self._samples + self._stretch + self._unseen_samples)

    def heard(self, frames: _Floats, mono: _Floats) -> None:
        """Cleaned float32[n, channels] and their mix float32[n]."""
        self._unseen.append((frames, mono))
        self._unseen_samples += len(mono)
        if self._unseen_samples >= self._enough:
            self._look()

    def _look(self) -> None:
        """At what was heard since the last look."""
        for frames, mono in self._unseen:
            self._look_at(frames, mono)
        self._unseen.clear()
        self._unseen_samples = 0
        if self._first and self._samples >= min(self._first.values()) + _JUDGED_AFTER_S * self._rate_hz:
            self._tell()

    def _look_at(self, frames: _Floats, mono: _Floats) -> None:
        self._stretch += len(mono)
        self._sum += float(np.add.reduce(mono))
        if self._averages and frames.shape[1] > 1:
            self._channel_energy += float(np.vdot(frames, frames)) / frames.shape[1]
            self._mixed_energy += float(np.vdot(mono, mono)) * frames.shape[1]
        if self._stretch >= _STRETCH_S * self._rate_hz:
            self._judge_stretch()

    def end(self) -> None:
        """The recording, or the stream, is over."""
        self._look()
        self._tell()

    def _begin(self, name: str, rate_hz: int) -> None:
        self._name, self._rate_hz, self._enough = name, rate_hz, min(_LOOK_S * rate_hz, _LOOK_SAMPLES)
        self._unseen: list[tuple[_Floats, _Floats]] = []
        self._unseen_samples = 0
        self._samples = self._stretch = 0  # before the present stretch, and in it
        self._sum = self._channel_energy = self._mixed_energy = 0.0
        self._earlier_offset: float | None = None
        self._counts: dict[str, float] = defaultdict(float)
        self._first: dict[str, int] = {}

    def _found(self, kind: str, count: float, at: int) -> None:
        self._counts[kind] += count
        if kind not in self._told:
            self._first.setdefault(kind, at)

    def _judge_stretch(self) -> None:
        """The last second or so; an offset counts when the second before had it, too."""
        size, offset, earlier = self._stretch, self._sum / self._stretch, self._earlier_offset
        begin = self._samples
        if self._channel_energy > _QUIET * size and self._mixed_energy < _CANCELLED * self._channel_energy:
            self._found("cancelled", size, begin)
            self._counters.cancelled_samples += size
        if abs(offset) > _OFFSET and (earlier is None or offset * earlier > 0):
            self._found("offset", size, begin)
            self._counters.offset_samples += size
        self._earlier_offset = offset if abs(offset) > _OFFSET else 0.0
        self._samples += size
        self._stretch, self._sum, self._channel_energy, self._mixed_energy = 0, 0.0, 0.0, 0.0

    def _tell(self) -> None:
        for kind, first in self._first.items():
            share = self._counts[kind] / (self._samples + self._stretch)
            at_s = first / self._rate_hz
            if kind == "clipped" and share < _LEAST_SHARE:
                continue
            _LOG.warning("%s: %.3g %% %s (first at %.1f s)", self._name, 100 * share, _WRONG[kind], at_s)
            self._told.add(kind)
        self._first = {}
