"""The library calls behind `runtime_edge.open` and `runtime_edge.run`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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
from runtime_edge.settings import validate


class EdgeEncoder:
    """An encoder on this machine, whole or up to an exit, perhaps with a head on top."""

    def __init__(self, prefix: Prefix, head: Head | None = None, early: LoadedExit | None = None) -> None:
        front_end = prefix.bundle.manifest.info.front_end
        self.sample_rate: int = front_end.sample_rate
        self.window_samples: int = front_end.window_samples
        self.hop_samples: int = front_end.hop_samples
        self.embedding_dim: int = prefix.bundle.manifest.info.encoder.embedding_dim
        self._prefix, self._head, self._early = prefix, head, early

    def embed(self, waveform: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Embeddings (windows, d) float32, unit norm, of a mono waveform (samples,) in [-1, 1].

        One window each `hop_samples`; a sound shorter than one window is padded with silence. Raises UsageError.
        """
        try:
            audio = np.nan_to_num(np.asarray(waveform, dtype=np.float32), posinf=1.0, neginf=-1.0)
        except (TypeError, ValueError) as exc:
            raise UsageError(f"waveform: expected numbers ({exc})") from None
        if audio.ndim != 1 or audio.size == 0:
            raise UsageError(f"waveform of shape {audio.shape}; expected (samples,) with at least one sample")
        missing = max(0, self.window_samples - audio.size)
        audio = np.pad(audio, (0, missing))
        starts = range(0, audio.size - self.window_samples + 1, self.hop_samples)
        result = np.empty((len(starts), self.embedding_dim), np.float32)
        for row, start in enumerate(starts):
            result[row] = self._window(audio[start : start + self.window_samples])
        return result

    def _window(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self._early is None:
            return self._prefix.embed(samples)
        self._prefix.start(samples)
        self._prefix.advance(self._early.cut)
        return self._early.embedding()

    def classify(self, waveform: npt.ArrayLike) -> list[dict[str, float]]:
        """For each window of a waveform (samples,), labels with scores in [0, 1], best first.

        Raises UsageError, also when no head was opened with the bundle.
        """
        if self._head is None:
            raise UsageError('no head: open the bundle with one, as in open("bundle/", head="head.json")')
        labels = self._head.labels
        return [
            {labels[place]: float(scores[place]) for place in np.argsort(-scores, kind="stable")}
            for scores in self._head.scores(self.embed(waveform), None if self._early is None else self._early.info.cut)
        ]


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
    given = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    config = DeviceConfig(source=source, **validate(DeviceConfig, given, "runtime_edge.run"))
    if config.broker is None and config.bundle is None:
        raise UsageError("runtime_edge.run: give broker, a server's address, or bundle, to run one without a server")
    sinks: list[Sink] = [CallbackSink(on_result), *(JsonLines(path) for path in config.results)]
    return asyncio.run(Device(config, sinks).run())
