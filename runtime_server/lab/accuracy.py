"""The accuracy that a policy costs: every labelled clip passes through blocks, bottlenecks, exits and the wire format.

Nothing is shaped, paced or sent here. What a device ships is encoded and decoded by the code that device and server
use, and the blocks after the cut are the bundle's own in float32. For a policy that chooses, each window gets the
embedding of the action that the policy took for one of the windows of its run in a scenario.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path

import msgspec
import numpy as np
import soundfile
import torch

from runtime_edge.audio import open_source
from runtime_edge.audio.wire_streams import AudioStreamDecoder, AudioStreamEncoder
from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.codec import CutCodec
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.formats.records.actions import action_name
from runtime_edge.formats.records.table import LOCAL
from runtime_edge.formats.wire import Reply, int8_embedding
from runtime_edge.inference.cut_assets.bottleneck import LoadedBottleneck
from runtime_edge.inference.cut_assets.early_exit import LoadedExit
from runtime_edge.inference.prefix import Prefix
from runtime_server.lab.clips import (
    CLIP_SAMPLES,
    SAMPLE_RATE,
    Array,
    load_clips,
    precision_at_10,
    probe_accuracy,
    silhouette,
)
from streamsplit_compile.bottleneck.block import read_bottleneck
from streamsplit_compile.splitter.pricing import default_encoding

PCM, _OPUS = "pcm16", "opus-"


class Accuracy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How well the embeddings of clips, each the mean of its windows, separate the classes."""

    probe: float
    """Accuracy of a linear probe, mean over the folds."""
    precision_at_10: float
    silhouette: float
    clips: int
    """The number of clips judged."""
    head: float | None = None
    """A linear head fitted to the whole encoder's embeddings of other folds and applied to the last answers; None in
    files from before exits."""
    head_first: float | None = None
    """The same head, applied to the first answers."""


class Recordings:
    """The clips one after the other, as a device hears them."""

    def __init__(self, root: Path, work: Path, every: int, front_end: FrontEndInfo, fold: int | None = None) -> None:
        """Takes every `every`-th clip, and judges those of one fold, or all.

        Raises FormatError, or UsageError if the clips' length is not a whole number of hops or no clip is in the fold.
        """
        clips = load_clips(root)
        self.clips = clips.select(np.arange(0, len(clips.labels), every))
        self._fold = fold
        if fold is not None and fold not in self.clips.folds:
            raise UsageError(f"--fold {fold}: none of the {len(self.clips.labels)} labelled clips is in it")
        length = CLIP_SAMPLES * front_end.sample_rate // SAMPLE_RATE  # of a clip, at the encoder's rate
        if length % front_end.hop_samples:
            raise UsageError(f"clips of {length} samples are not a whole number of hops of {front_end.hop_samples}")
        path = work / "clips.wav"
        soundfile.write(path, self.clips.waveforms.ravel(), SAMPLE_RATE, subtype="PCM_16")
        blocks = open_source(str(path), front_end.sample_rate, realtime=False)
        heard = np.concatenate([block.samples for block in blocks])
        starts = np.arange(0, heard.size - front_end.window_samples + 1, front_end.hop_samples)
        self.windows = [heard[start : start + front_end.window_samples] for start in starts]
        clip = starts // length
        self._clip_of = np.where(clip == (starts + front_end.window_samples - 1) // length, clip, -1)
        """The clip of each window; -1 for a window that overlaps two clips."""

    def score(self, final: Array, first: Array, whole: Array) -> Accuracy:
        """The accuracy of last and first answers, given the whole encoder's embeddings too, each (windows, d)."""
        clips, answers, early, exact = self.clips, *(self._of_clips(each) for each in (final, first, whole))
        folds = np.unique(clips.folds) if self._fold is None else np.array([self._fold])
        chosen = np.isin(clips.folds, folds)

        def probed(fitted: Array, asked: Array) -> float:
            return round(float(np.mean([probe_accuracy(fitted, clips, fold, asked) for fold in folds])), 4)

        return Accuracy(
            probed(answers, answers),
            round(precision_at_10(answers, clips, self._fold), 4),
            round(silhouette(answers[chosen], clips.select(chosen)), 4),
            int(chosen.sum()),
            probed(exact, answers),
            probed(exact, early),
        )

    def _of_clips(self, embeddings: Array) -> Array:
        return np.stack([embeddings[self._clip_of == clip].mean(0) for clip in range(len(self.clips.labels))])


class Answers:
    """The embeddings of windows by whatever computes them.

    Names are as in `Figures.final_answers`: `local`, `<cut>+exit`, or what is shipped for the server: `<cut>`,
    `<cut>/<width>`, `pcm16` or `opus-<kbit/s>`.
    """

    def __init__(self, bundle: Bundle, target: str) -> None:
        """Runs the bundle as a device of the target does. Raises BundleError or BackendError."""
        self._manifest = manifest = bundle.manifest
        self._device, self._server = Prefix(bundle, manifest.info.targets[target].variant), Prefix(bundle)
        cuts = manifest.info.cuts
        self._plain = {cut.name: CutCodec(cut, default_encoding(cut, len(cuts))) for cut in cuts}
        self._exits = {info.cut: LoadedExit(self._device, info) for info in manifest.info.exits}
        self._narrow = {info.cut: LoadedBottleneck(self._device, info) for info in manifest.info.bottlenecks}
        self._decoders = {
            info.cut: read_bottleneck(bundle.read(info.decoder.file), manifest.cut_named(info.cut), str(bundle.path))
            for info in manifest.info.bottlenecks
        }
        self.payloads: dict[str, list[int]] = {}
        """By name, the payload size in bytes of each window of the last call."""

    def of(self, names: Iterable[str], windows: Sequence[Array], consecutive: bool = True) -> dict[str, Array]:
        """By name, embeddings (windows, d) of windows, each (samples,). Raises UsageError without Opus.

        If the windows are not `consecutive`, one hop apart, a stream sends each of them whole.
        """
        wanted = set(names)
        self.payloads = {name: [] for name in wanted}
        streams = {name: self._heard(name, windows, not consecutive) for name in wanted if name.startswith(_OPUS)}
        found: dict[str, list[Array]] = {name: [] for name in sorted(wanted)}
        for window in windows:
            shipped = [(name, 0, next(stream)) for name, stream in streams.items()]
            for name, embedding in self._of_device(window, wanted, shipped):
                found[name].append(embedding)
            for name, cut, activation in shipped:
                self._server.resume(cut, activation)
                found[name].append(_answered(self._server.advance(self._server.last_cut)[0]))
        return {name: np.stack(embeddings) for name, embeddings in found.items()}

    def _of_device(
        self, window: Array, wanted: Set[str], shipped: list[tuple[str, int, Array]]
    ) -> Iterator[tuple[str, Array]]:
        """The device's own embeddings of a window; adds what the server gets to `shipped`: name, cut, activation."""
        self._device.start(window)
        for cut in self._manifest.info.cuts:
            activation = self._device.advance(cut.index)
            if (early := action_name(cut.name, 0, "exit")) in wanted:
                yield early, self._exits[cut.name].embedding()
            for name in {cut.name, *([PCM] if cut.index == 0 else [])} & wanted:
                payload, coded = self._plain[cut.name].encode(activation)
                self.payloads[name].append(len(payload))
                shipped.append((name, cut.index, self._plain[cut.name].decode(payload, coded)))
            for width in self._manifest.widths.get(cut.name, ()):
                if (name := action_name(cut.name, width)) in wanted:
                    shipped.append((name, cut.index, self._through(name, cut.name, width)))
        if LOCAL in wanted:
            yield LOCAL, activation[0].copy()

    def _through(self, name: str, cut: str, width: int) -> Array:
        """The activation as the server receives it through the bottleneck."""
        payload, coded = self._narrow[cut].encode(width)
        self.payloads[name].append(len(payload))
        latent = self._narrow[cut].codec.decode(payload, coded, width)
        with torch.inference_mode():
            decoded: Array = self._decoders[cut].decode(torch.from_numpy(latent)).numpy()
        return decoded

    def _heard(self, stream: str, windows: Sequence[Array], alone: bool) -> Iterator[Array]:
        """What the server hears of each window, (1, samples)."""
        front_end = self._manifest.info.front_end
        shape = front_end.sample_rate, front_end.window_samples, front_end.hop_samples
        encoder = AudioStreamEncoder("opus", *shape, float(stream.removeprefix(_OPUS)))
        decoder = AudioStreamDecoder("opus", *shape)
        for index, window in enumerate(windows):
            payload = encoder.encode(window, index, alone)
            self.payloads[stream].append(len(payload))
            yield decoder.decode(payload, index)


def _answered(embedding: Array) -> Array:
    """An embedding (d,) as it is in the server's answer."""
    found = Reply(0, 0, "ok", 0, int8_embedding(embedding), "int8").vector(embedding.size)
    assert found is not None, "it is of as many values"
    return found


def mixed(by_name: Mapping[str, Array], sequence: Sequence[str]) -> Array:
    """(windows, d): each window's embedding by the name in `sequence`, which is repeated as needed."""
    windows = len(next(iter(by_name.values())))
    return np.stack([by_name[sequence[index % len(sequence)]][index] for index in range(windows)])
