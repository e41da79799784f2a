"""Measures how few bytes an encoder with a head can ship, and how early it can answer, before its labels suffer.

    python -m tools.bench_pay resnet18 bundle/ head.json --audio recordings/ [--components layer2.0] [--no-publish]

`bundle/` was compiled on recordings outside fold 5, `head.json` is the encoder's head (`ssc encoder new` writes it).
The clips of fold 5 of ESC-10 and Speech Commands (`recordings/<set>/labels.csv`) go through the same steps as on
devices and servers: prefix, bottleneck, exit, coding, and the rest of the blocks, at each width. A clip's label is the
one with the best mean score over its windows; the interval is the 95 % one of a paired bootstrap over clips.

For comparison there are principal components of the channels alone, in several ranks and precisions, compressed by
zstd, which need no training and no patches. They are fitted to windows of the other folds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zstandard

from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.codec import channel_axis
from runtime_edge.formats.manifest import Manifest
from runtime_edge.formats.records.actions import action_name
from runtime_edge.formats.records.head import Head, read_head
from runtime_edge.formats.records.table import LOCAL
from runtime_edge.inference.prefix import Prefix
from runtime_server.lab.accuracy import Answers
from runtime_server.labels.labelled import LabelledClip, windows_of
from tools.benchmarks import Section, publish, show
from tools.judged_clips import Bools, interval, right_clips, split_clips
from tools.reference.corpus import GATE_DB

MOST_WORK, MOST_LOST = 0.4, 1.0
"""Limits: the share of multiply-adds after the front end that come before a cut, and the points lost on average."""
EXIT_WORK = 0.6
POINTS_OF = "points_lost_of_"
"""Prefix of the published mapping's name, before the encoder's name."""
RANKS, BITS = (8, 12, 16), (4, 6)
_LEVEL = 19
_FITTED, _WINDOWS = 256, 2
"""Recordings that components are fitted to, with one window each; the most windows of a clip that are judged."""
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Clips:
    """The clips that are judged."""

    windows: Array
    """(n, samples)."""
    owners: npt.NDArray[np.int64]
    """(n,) the clip that each window belongs to."""
    truth: npt.NDArray[np.int64]
    """(clips,) indices of the head's labels."""

    def right(self, head: Head, embeddings: Array) -> Bools:
        """Which clips are right, (clips,), given the windows' embeddings (n, d); one without windows is wrong."""
        return right_clips(head.scores(embeddings).astype(np.float64), self.owners, self.truth)


@dataclass(frozen=True)
class Way:
    """The results of one way of answering."""

    name: str
    lost: float
    """Points of accuracy lost."""
    low: float
    high: float
    cosine: float
    """Median cosine with the whole encoder's embedding."""
    payload: float = 0.0
    """Mean bytes per window."""
    p99: float = 0.0

    def __str__(self) -> str:
        sent = f"{self.payload:.0f} bytes, 99 % within {self.p99:.0f}; " if self.payload else ""
        return f"{sent}points lost {self.lost:.2f} ({self.low:.2f} to {self.high:.2f}); median cosine {self.cosine:.4f}"


def clips_of(audio: Path, manifest: Manifest, head: Head) -> tuple[Clips, list[LabelledClip]]:
    """The clips that are judged, and the recordings of the other folds."""
    judged, others = split_clips(audio)
    heard = windows_of([clip for clip, _ in judged], manifest.info.front_end, _WINDOWS, GATE_DB)
    truth = np.array([head.labels.index(clip.labels[0]) for clip, _ in judged])
    return Clips(heard.embeddings, heard.groups, truth), others


def work_before(manifest: Manifest) -> dict[str, float]:
    """For each cut the share of the multiply-adds before it, not counting the first block, which makes the image."""
    info = manifest.info
    macs = [manifest.components[block].additional_metadata.ssc.macs for block in info.blocks]
    return {cut.name: sum(macs[1 : cut.index]) / sum(macs[1:]) for cut in info.cuts[1:]}


@dataclass(frozen=True)
class Judge:
    """Compares ways of answering with the whole encoder on the same clips."""

    clips: Clips
    head: Head
    whole: Array
    """(n, d) embeddings of the whole encoder."""

    def way(self, name: str, found: Array, payloads: Sequence[int] = ()) -> Way:
        """Judge one way by its embeddings (n, d), and print the result."""
        plain, right = (self.clips.right(self.head, embeddings) for embeddings in (self.whole, found))
        norms = np.linalg.norm(self.whole, axis=1) * np.linalg.norm(found, axis=1)
        cosine = float(np.median((self.whole * found).sum(1) / np.maximum(norms, 1e-12)))
        sizes = (float(np.mean(payloads)), float(np.percentile(payloads, 99))) if payloads else (0.0, 0.0)
        judged = Way(name, 100 * float(plain.mean() - right.mean()), *interval(plain, right), cosine, *sizes)
        print(f"{name}: {judged}", flush=True)
        return judged


def components(seen: Array, rank: int, bits: int, heard: Array) -> Iterator[tuple[Array, int]]:
    """Send activations `heard` (n, channels, ...) through `rank` principal components of their channels; yields each as
    received, and its bytes. Each component has its own step, from its range in `seen` (m, channels, ...).
    """
    channels = np.moveaxis(seen, 1, -1).reshape(-1, seen.shape[1]).astype(np.float64)
    mean = channels.mean(0)
    basis = np.linalg.eigh(np.cov(channels.T))[1][:, ::-1][:, :rank]
    low, high = np.percentile((channels - mean) @ basis, (0.1, 99.9), axis=0)
    step = np.maximum(high - low, 1e-9) / (2**bits - 1)
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    for activation in heard:
        places = np.moveaxis(activation, 0, -1)
        values = ((places.reshape(-1, len(mean)) - mean) @ basis - low) / step
        levels = np.clip(np.rint(values), 0, 2**bits - 1).astype(np.uint8)
        payload = compressor.compress(np.ascontiguousarray(levels.T).tobytes())
        arrived = ((levels * step + low) @ basis.T + mean).reshape(places.shape)
        yield np.moveaxis(arrived, -1, 0).astype(np.float32), len(payload)


def by_components(bundle: Bundle, name: str, known: Sequence[LabelledClip], judge: Judge) -> list[Way]:
    """Judge components of the channels at a cut, in every rank and precision."""
    prefix, cut = Prefix(bundle), bundle.manifest.cut_named(name)
    some = [known[place] for place in np.random.default_rng(0).permutation(len(known))[:_FITTED]]
    chosen = windows_of(some, bundle.manifest.info.front_end, 1, GATE_DB).embeddings

    def at_cut(windows: Array) -> Array:
        found = []
        for window in windows:
            prefix.start(window)
            found.append(prefix.advance(cut.index)[0].copy())
        return np.moveaxis(np.stack(found), channel_axis(cut.shape), 1)

    seen, heard, ways = at_cut(chosen), at_cut(judge.clips.windows), []
    for rank in RANKS:
        for bits in BITS:
            embeddings, sizes = [], []
            for activation, size in components(seen, rank, bits, heard):
                prefix.resume(cut.index, np.moveaxis(activation, 0, channel_axis(cut.shape) - 1)[None])
                embeddings.append(prefix.advance(prefix.last_cut)[0].copy())
                sizes.append(size)
            ways.append(judge.way(f"{name}, {rank} components of {bits} bits, zstd", np.stack(embeddings), sizes))
    return ways


def measure(
    bundle: Bundle, head: Head, audio: Path, target: str, chosen: Sequence[str], beside: str | None
) -> tuple[list[Way], list[Way]]:
    """Judge the whole encoder with the chosen ways, or with Opus, every width and every exit; also the components."""
    manifest = bundle.manifest
    clips, known = clips_of(audio, manifest, head)
    every = [action_name(info.cut, 0, "exit") for info in manifest.info.exits]
    every += [action_name(cut, width) for cut, widths in manifest.widths.items() for width in widths]
    names = [LOCAL, *(chosen or ["opus-16", *every])]
    answers = Answers(bundle, target)
    found = answers.of(names, list(clips.windows), consecutive=False)
    judge = Judge(clips, head, found[LOCAL])
    ways = [judge.way(name, found[name], answers.payloads[name]) for name in names]
    return ways, by_components(bundle, beside, known, judge) if beside else []


def least(ways: Sequence[Way]) -> Way | None:
    """The way with the fewest bytes of those that lose little; None if none does."""
    return min((one for one in ways if one.lost <= MOST_LOST), key=lambda one: one.payload, default=None)


def section(name: str, manifest: Manifest, ways: Sequence[Way], beside: Sequence[Way], clips: int) -> Section:
    """The figures."""
    found = Section(
        "pay",
        f"Bytes and first answers: {name}",
        f"python -m tools.bench_pay {name} bundle/ head.json --audio recordings/ --components CUT",
        part=name,
    )
    work = work_before(manifest)
    where = {cut: f"{share:.0%} of the multiply-adds past the front end" for cut, share in work.items()}
    cut_of = {one.name: one.name.partition("/")[0].partition("+")[0] for one in ways}
    allowed = [one for one in ways if "/" in one.name and work[cut_of[one.name]] <= MOST_WORK]
    if (best := least(allowed)) is not None:
        told = f"bytes a window: {best.name}, {where[cut_of[best.name]]}; {clips} clips of fold 5; {best}"
        found.add(f"bytes_equal_accuracy.{name}", best.payload, "at most 400", told)
    if (plain := least(beside)) is not None:
        cut = plain.name.partition(",")[0]
        own = least([one for one in ways if one.name.startswith(f"{cut}/")])
        if own is not None:
            told = f"times the bytes of {own.name} ({own}) for {plain.name}: {plain}"
            found.add(f"bytes_against_components.{name}", plain.payload / own.payload, "at least 1.8", told)
    exits = [one for one in ways if one.name.endswith("+exit") and work[cut_of[one.name]] <= EXIT_WORK]
    if exits:
        first = min(exits, key=lambda one: one.lost)
        told = f"points: {first.name}, {where[cut_of[first.name]]}; {clips} clips of fold 5; {first}"
        found.add(f"exit_points_lost.{name}", first.lost, "at most 4", told)
    for one in ways:
        found.add(f"{POINTS_OF}{name}.{one.name}", one.lost, "", str(one))
    for one in beside:
        found.detail(one.name, str(one))
    return found


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="Of the encoder, in what is published.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("head", type=Path)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--target", default="rpi4", help="Whose blocks run.")
    parser.add_argument("--way", action="append", default=[], help="Only these, such as layer2.0/32 or layer2.0+exit.")
    parser.add_argument("--components", metavar="CUT", help="Where components of channels are measured, too.")
    parser.add_argument("--no-publish", action="store_true", help="print the numbers and leave docs/ alone")
    given = parser.parse_args()
    bundle = open_bundle(given.bundle)
    ways, beside = measure(bundle, read_head(given.head), given.audio, given.target, given.way, given.components)
    judged, _ = split_clips(given.audio)
    (show if given.no_publish else publish)(section(given.name, bundle.manifest, ways, beside, len(judged)))


if __name__ == "__main__":
    main()
