"""Measures the gain of a cascade: a small encoder on the device, a larger one on the server for uncertain windows.

    python -m tools.bench_cascade encoder.pt head.json larger.pt ... --audio recordings/ [--no-publish]

`recordings/esc10/labels.csv` and `recordings/speech_commands/labels.csv` name recordings with class and fold. Fold 5 is
judged, by clip; the map from the larger encoder to the device's embeddings is fitted to windows of the other folds.
As on a device, a gate chooses the windows to ship, which go through Opus at 16 kbit/s; clips come in a random order.
Several larger encoders (of several seeds) are averaged; the interval is the 95 % one of a paired bootstrap over clips.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from runtime_edge.audio.wire_streams import AudioStreamDecoder, AudioStreamEncoder
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.formats.records.head import Head, entropy, read_head
from runtime_edge.policy.ship_gate import MostUncertain
from runtime_server.labels.labelled import windows_of
from runtime_server.suffix.larger_encoder import MAX_WINDOWS, AlignedEncoder, Embed, LargerEncoder, in_batches, whole
from streamsplit_compile.encoder.encoders import load_encoder
from tools.benchmarks import Section, publish, show
from tools.judged_clips import Bools, interval, right_clips, split_clips
from tools.reference.corpus import GATE_DB, SETS

KBPS = 16.0
_MOST = 64
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Heard:
    """Windows of the fold that is judged, with the device's embeddings."""

    windows: Array
    """(n, samples)."""
    clips: npt.NDArray[np.int64]
    """(n,) the clip that each window belongs to."""
    labels: npt.NDArray[np.int64]
    """(clips,) indices of the head's labels."""
    sets: npt.NDArray[np.str_]
    """(clips,) the data set that each clip belongs to."""
    own: Array
    """(n, d) embeddings of the device's encoder."""


@dataclass(frozen=True)
class Shipped:
    """The windows that are shipped with one order of the clips."""

    chosen: Bools
    """(n,) whether each window is shipped."""
    received: Array
    """(n, samples) as decoded by the server; windows that are not shipped are unchanged."""
    payload: int
    """Bytes of all payloads together."""


def hear(audio: Path, front_end: FrontEndInfo, head: Head, embed: Embed) -> tuple[Heard, Array]:
    """Windows of the fold that is judged, and windows (n, samples) of the other folds that the map is fitted to."""
    judged, known = split_clips(audio)
    found = windows_of([clip for clip, _ in judged], front_end, _MOST, GATE_DB)
    fitted = windows_of(known, front_end, 1 + MAX_WINDOWS // len(known), GATE_DB).embeddings
    heard = Heard(
        found.embeddings,
        found.groups,
        np.array([head.labels.index(clip.labels[0]) for clip, _ in judged]),
        np.array([name for _, name in judged]),
        in_batches(embed, torch.from_numpy(found.embeddings)).numpy(),
    )
    return heard, fitted[np.random.default_rng(0).permutation(len(fitted))[:MAX_WINDOWS]]


def ship(heard: Heard, choose: Bools | MostUncertain, entropies: Array, front_end: FrontEndInfo, order: int) -> Shipped:
    """Play the clips in a random order and ship windows chosen by a gate or in advance, as Opus."""
    hop, size = front_end.hop_samples, front_end.window_samples
    encoder = AudioStreamEncoder("opus", front_end.sample_rate, size, hop, KBPS)
    chosen, received, payload, index = np.zeros(len(entropies), np.bool_), heard.windows.copy(), 0, 0
    for clip in np.random.default_rng(order).permutation(np.unique(heard.clips)):
        decoder = AudioStreamDecoder("opus", front_end.sample_rate, size, hop)
        index += 1  # a gap, so that no stream continues from one clip to the next
        for place in np.flatnonzero(heard.clips == clip):
            index += 1
            chosen[place] = choose.ships(entropies[place]) if isinstance(choose, MostUncertain) else choose[place]
            if chosen[place]:
                data = encoder.encode(heard.windows[place], index, alone=False)
                received[place], payload = decoder.decode(data, index)[0], payload + len(data)
    return Shipped(chosen, received, payload)


def measure(encoder: Path, head_file: Path, larger: Sequence[Path], audio: Path, share: float) -> Section:
    """Measure the figures."""
    loaded, head = load_encoder(encoder), read_head(head_file)
    size = loaded.window_samples
    front_end = FrontEndInfo(sample_rate=loaded.sample_rate, window_samples=size, hop_samples=size // 2, details={})
    embed = whole(loaded.graph)
    heard, fitted = hear(audio, front_end, head, embed)
    first = head.scores(heard.own).astype(np.float64)
    entropies = np.array([entropy(scores, head.scores_by) for scores in first], np.float32)
    alone = right_clips(first, heard.clips, heard.labels)
    found: dict[str, list[Bools]] = {"cascade": [], "chance": [], "every": []}
    shares, payloads, of_all, cosines = [], [], [], []
    for order, path in enumerate(larger):
        aligned = LargerEncoder(whole(load_encoder(path).graph), torch.from_numpy(fitted)).aligned(embed)
        cosines.append(aligned.cosine)

        def final(windows: Array, by: AlignedEncoder = aligned) -> npt.NDArray[np.float64]:
            received = torch.from_numpy(windows)
            found = in_batches(lambda part: by.embed(part, embed(part)), received)
            return head.scores(found.numpy()).astype(np.float64)

        sent = ship(heard, MostUncertain(share), entropies, front_end, order)
        by_chance = ship(heard, np.random.default_rng(order).permutation(sent.chosen), entropies, front_end, order)
        every = ship(heard, np.ones_like(sent.chosen), entropies, front_end, order)
        for name, one in (("cascade", sent), ("chance", by_chance), ("every", every)):
            scores = first.copy()
            scores[one.chosen] = final(one.received[one.chosen])
            found[name].append(right_clips(scores, heard.clips, heard.labels))
        shares.append(sent.chosen.mean())
        payloads.append(sent.payload / len(first))
        of_all.append(every.payload / len(first))
    return _section(heard, alone, found, share, (shares, payloads, of_all, cosines))


def _section(
    heard: Heard, alone: Bools, found: dict[str, list[Bools]], share: float, counted: tuple[list[float], ...]
) -> Section:
    shares, payloads, of_all, cosines = (float(np.mean(values)) for values in counted)
    section = Section("pay", "A cascade", "python -m tools.bench_cascade encoder.pt head.json larger.pt ...", "cascade")
    clips, seeds = len(alone), len(found["cascade"])
    means = {name: np.mean(results, axis=0) for name, results in found.items()}
    points = {name: 100 * float((mean - alone).mean()) for name, mean in means.items()}
    high, low = (-bound for bound in interval(alone, means["cascade"]))
    what = f"points over device-only; {clips} clips of fold 5, {seeds} larger encoders; 95 % {low:.2f} to {high:.2f}"
    section.add("cascade_gain", points["cascade"], "at least 1.5", what)
    section.add("cascade_shipped", shares, f"at most {share:g}", "share of the windows, those of the largest entropy")
    section.add("cascade_gain_by_chance", points["chance"], "", "points, as many windows shipped by chance")
    section.add("cascade_gain_of_all", points["every"], "", "points, every window shipped")
    section.add("cascade_bytes", payloads, "", f"bytes of Opus a window, over all; {of_all:.0f} where all are shipped")
    for name in SETS:
        own = heard.sets == name
        parts = [f"{which} {mean[own].mean():.4f}" for which, mean in means.items()]
        section.detail(
            f"right clips of {name} ({int(own.sum())})", f"device {alone[own].mean():.4f}, " + ", ".join(parts)
        )
    section.detail("median cosine of the mapped embeddings with the device's", f"{cosines:.3f}")
    return section


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path, help="The device's.")
    parser.add_argument("head", type=Path)
    parser.add_argument("larger", type=Path, nargs="+", help="As `tools.train_larger` writes it; one for each seed.")
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.25, help="Of the windows, that are shipped at most.")
    parser.add_argument("--no-publish", action="store_true", help="print the numbers and leave docs/ alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    section = measure(given.encoder, given.head, given.larger, given.audio, given.share)
    if given.no_publish:
        show(section)
    else:
        publish(section)


if __name__ == "__main__":
    main()
