"""The library calls behind `runtime_edge.open` and `runtime_edge.run`."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_edge.audio import AudioBlock, AudioWindow, Windower, open_source
from runtime_edge.audio.file_decoder import MAX_RATE_HZ, MIN_RATE_HZ
from runtime_edge.audio.resample import Resampler
from runtime_edge.config import DeviceConfig
from runtime_edge.device.device import Device
from runtime_edge.device.sinks import Callback, CallbackSink, JsonLines, Sink
from runtime_edge.errors import UsageError
from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.formats.records.head import Head, read_head
from runtime_edge.inference.contract import RuntimeOptions
from runtime_edge.inference.cut_assets.early_exit import LoadedExit
from runtime_edge.inference.prefix import Prefix
from runtime_edge.inference.variants import choose_variant
from runtime_edge.settings import from_call

Audio = str | os.PathLike[str] | npt.ArrayLike
"""The path of an audio file, or a waveform."""
_LABELS_SHOWN = 3


class WindowLabels(dict[str, float]):
    """Labels with scores in [0, 1], best first, for the window from `start_s` to `end_s` (seconds) of a recording."""

    def __init__(self, scores: Iterable[tuple[str, float]], start_s: float, end_s: float, detected: Iterable[str]):
        super().__init__(scores)
        self.start_s, self.end_s = start_s, end_s
        self.detected: tuple[str, ...] = tuple(detected)
        """The labels whose scores reach the head's thresholds, best first."""

    def __repr__(self) -> str:
        best = ", ".join(f"{label} {score:.2f}" for label, score in itertools.islice(self.items(), _LABELS_SHOWN))
        more = len(self) - _LABELS_SHOWN
        return f"<{self.start_s:g} to {self.end_s:g} s: {best}{f' and {more} more' if more > 0 else ''}>"


class EdgeEncoder:
    """An encoder on this machine, whole or up to an exit, optionally with a head."""

    def __init__(self, prefix: Prefix, head: Head | None = None, early: LoadedExit | None = None) -> None:
        front_end = prefix.bundle.manifest.info.front_end
        self.sample_rate: int = front_end.sample_rate
        self.window_samples: int = front_end.window_samples
        self.hop_samples: int = front_end.hop_samples
        self.embedding_dim: int = prefix.bundle.manifest.info.encoder.embedding_dim
        self._prefix, self._head, self._early = prefix, head, early

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the head knows; empty without a head."""
        return () if self._head is None else self._head.labels

    def __repr__(self) -> str:
        info, rate = self._prefix.bundle.manifest.info, self.sample_rate
        exit_cut = "" if self._early is None else f", up to the exit at {self._early.info.cut}"
        labels = f", {len(self.labels)} labels" if self.labels else ""
        return (
            f"<EdgeEncoder {info.encoder.id}, generation {info.generation}, {self._prefix.variant}{exit_cut}: windows "
            f"of {self.window_samples / rate:g} s every {self.hop_samples / rate:g} s at {rate} Hz, "
            f"{self.embedding_dim} values{labels}>"
        )

    def embed(self, audio: Audio, sample_rate: float | None = None) -> npt.NDArray[np.float32]:
        """Embeddings (windows, d) float32, unit norm, of a recording.

        One window every `hop_samples`; a recording shorter than one window is padded with silence.

        Args:
            audio: the path of an audio file of any rate and number of channels, or a mono waveform (samples,) in
                [-1, 1].
            sample_rate: rate of the waveform, Hz, if it is not the encoder's own `sample_rate`; it is then resampled.

        Raises UsageError, SourceError for a file that cannot be read, or MissingExtra if reading a file or resampling
        needs the extra `edge` and it is not installed.
        """
        return np.stack([self._window(window.samples) for window in self._windows(audio, sample_rate)])

    def classify(self, audio: Audio, sample_rate: float | None = None) -> list[WindowLabels]:
        """For each window of a recording: labels with scores, and the window's start and end.

        Takes the same arguments as `embed` and raises the same errors; also UsageError when no head was opened with the
        bundle.
        """
        if self._head is None:
            raise UsageError('no head: open the bundle with one, as in open("bundle/", head="head.json")')
        head, rate, exit_cut = self._head, self.sample_rate, None if self._early is None else self._early.info.cut
        embeddings = self.embed(audio, sample_rate)
        found = []
        for number, (embedding, own) in enumerate(zip(embeddings, head.scores(embeddings, exit_cut), strict=True)):
            order, start = np.argsort(-own, kind="stable"), number * self.hop_samples
            found.append(
                WindowLabels(
                    ((self.labels[place], float(own[place])) for place in order),
                    start / rate,
                    (start + self.window_samples) / rate,
                    (self.labels[place] for place in head.detected(embedding, own, exit_cut)),
                )
            )
        return found

    def _windows(self, audio: Audio, sample_rate: float | None) -> Iterator[AudioWindow]:
        """Every window of a file or waveform."""
        if isinstance(audio, str | os.PathLike):
            if sample_rate is not None:
                raise UsageError(f"sample_rate {sample_rate}: a file says its own; leave it out")
            # An absolute path is always taken as a file: `mic` and `-` would be sources of their own.
            path = Path(audio).absolute()
            if path.is_dir():
                raise UsageError(f"{path}: a directory; give one recording at a time")
            blocks: Iterable[AudioBlock] = open_source(str(path), self.sample_rate)
        else:
            blocks = [AudioBlock(_at_rate(_waveform(audio), sample_rate, self.sample_rate), 0, 0)]
        return Windower(self.window_samples, self.hop_samples).windows(blocks)

    def _window(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self._early is None:
            return self._prefix.embed(samples)
        self._prefix.start(samples)
        self._prefix.advance(self._early.cut)
        return self._early.embedding()


def _waveform(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """The values as float32 (samples,), all finite. Raises UsageError."""
    try:
        audio = np.nan_to_num(np.asarray(values, dtype=np.float32), posinf=1.0, neginf=-1.0)
    except (TypeError, ValueError) as exc:
        raise UsageError(f"waveform: expected numbers ({exc})") from None
    if audio.ndim != 1 or audio.size == 0:
        raise UsageError(
            f"waveform of shape {audio.shape}; expected (samples,) with at least one sample, the mean of its channels"
        )
    return audio


def _at_rate(audio: npt.NDArray[np.float32], given: float | None, wanted: int) -> npt.NDArray[np.float32]:
    """The same audio at another rate, Hz. Raises UsageError or MissingExtra."""
    if given is None or given == wanted:
        return audio
    if not MIN_RATE_HZ <= given <= MAX_RATE_HZ or given != int(given):
        raise UsageError(f"sample_rate {given}: must be a whole number of Hz from {MIN_RATE_HZ} to {MAX_RATE_HZ}")
    resampler = Resampler(int(given), wanted)
    resampled = np.concatenate([resampler.push(audio), resampler.finish()])
    return resampled if resampled.size else np.zeros(1, np.float32)  # less than half a sample


def open_encoder(
    path: str, pub: str | None, variant: str, threads: int, head: str | None, exit_cut: str | None
) -> EdgeEncoder:
    """See `runtime_edge.open`."""
    trusted = None if pub is None else minisign.read_public_key(Path(pub))
    bundle = open_bundle(Path(path), trusted)
    prefix = Prefix(bundle, choose_variant(bundle.manifest, variant), RuntimeOptions(threads), native=True)
    early = None if exit_cut is None else _exit(prefix, exit_cut)
    for index in range(prefix.last_cut if early is None else early.cut):
        prefix.load(index)
    read = None
    if head is not None:
        read = read_head(Path(head), trusted)
        read.check_fits(bundle.manifest.info, head)
    return EdgeEncoder(prefix, read, early)


def _exit(prefix: Prefix, cut: str) -> LoadedExit:
    manifest = prefix.bundle.manifest
    info = manifest.exit(cut)
    if info is None:
        there = ", ".join(found.cut for found in manifest.info.exits) or "none: compile it with --calibrate"
        raise UsageError(f"exit {cut!r}: this bundle has no exit there; it has {there}")
    return LoadedExit(prefix, info)


def run_device(source: str, on_result: Callback, settings: dict[str, Any]) -> dict[str, Any]:
    """See `runtime_edge.run`."""
    config = from_call(DeviceConfig, {**settings, "source": source}, "runtime_edge.run")
    if not config.has_source:
        raise UsageError("runtime_edge.run: give a source, or watch, a folder into which recordings come")
    if config.broker is None and config.bundle is None:
        raise UsageError("runtime_edge.run: give broker, a server's address, or bundle, to run one without a server")
    sinks: list[Sink] = [CallbackSink(on_result), *(JsonLines(path) for path in config.results)]
    return asyncio.run(Device(config, sinks).run())
