"""Measures how well a head tells sounds that it was never taught from those that it knows.

    python -m tools.bench_unknown encoder.pt --audio recordings/ [--no-publish]

`recordings/esc10/labels.csv` names recordings with class and fold. A head is fitted to four folds as `ssc server label`
does, with two classes left out at a time. Windows and clips of the fifth fold are then judged: whether the energy says
`unknown`, and whether a label is detected in at least one window, with the energy, with a label `background` that was
fitted to two more classes, and with both.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score

from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.formats.records.head import Head
from runtime_server.labels.head_training import BACKGROUND, Examples, fit_head
from runtime_server.labels.labelled import read_clips, windows_of
from runtime_server.suffix.larger_encoder import in_batches, whole
from streamsplit_compile.encoder.encoders import load_encoder
from tools.benchmarks import Section, publish, show
from tools.reference.corpus import GATE_DB

Array = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Names = npt.NDArray[np.str_]
_MOST = 8
"""The most windows of a clip."""
_WAYS = ("nothing", "energy", "background", "both")


def fits(names: Names, folds: npt.NDArray[np.int64]) -> Iterator[tuple[Names, Names, int]]:
    """Yields two classes that are left out, two others that are background, and the fold that is judged."""
    classes = np.unique(names)
    for fold in np.unique(folds).tolist():
        for place in range(0, len(classes) - 1, 2):
            yield classes[place : place + 2], np.roll(classes, -2)[place : place + 2], fold


def fitted(embeddings: Array, labels: Names, groups: npt.NDArray[np.int64]) -> Head:
    """Fit a head to windows."""
    names = np.unique(labels)
    truth = labels[:, None] == names
    return fit_head(Examples(embeddings, tuple(map(str, names)), truth, groups, (1, 1)), "bench", "bench")


def detected(head: Head, embeddings: Array, by_energy: bool) -> Bools:
    """Whether a label is detected in each window, (windows,)."""
    scores = head.scores(embeddings)
    asked = head if by_energy else msgspec.structs.replace(head, min_energy=None)
    return np.array([bool(asked.detected(one, own)) for one, own in zip(embeddings, scores, strict=True)])


def measure(encoder: Path, audio: Path) -> Section:
    """Measure the figures."""
    loaded = load_encoder(encoder)
    size = loaded.window_samples
    front_end = FrontEndInfo(sample_rate=loaded.sample_rate, window_samples=size, hop_samples=size // 2, details={})
    clips = read_clips(audio / "esc10" / "labels.csv")
    heard = windows_of(clips, front_end, _MOST, GATE_DB)
    embeddings = in_batches(whole(loaded.graph), torch.from_numpy(heard.embeddings)).numpy()
    names = np.array([clip.labels[0] for clip in clips])
    folds = np.array([clip.fold or 0 for clip in clips])
    groups = heard.groups
    areas: list[float] = []
    told: dict[tuple[str, bool], list[float]] = defaultdict(list)
    events: dict[tuple[str, bool], list[bool]] = defaultdict(list)
    for unknown, background, fold in fits(names, folds):
        label, seen = names[groups], folds[groups] != fold
        never, other = np.isin(label, unknown), np.isin(label, background)
        plain = fitted(embeddings[seen & ~never], label[seen & ~never], groups[seen & ~never])
        renamed = np.where(other, BACKGROUND, label)
        apart = fitted(embeddings[seen & ~never], renamed[seen & ~never], groups[seen & ~never])
        asked = ~seen & ~other
        energies = np.logaddexp.reduce(plain.logits(embeddings[asked]).astype(np.float64), axis=1)
        areas.append(float(roc_auc_score(never[asked], -energies)))
        for is_new in (False, True):
            of = asked & (never == is_new)
            told["unknown", is_new].append(float(np.mean([plain.is_unknown(one) for one in embeddings[of]])))
            for way in _WAYS:
                head = apart if way in ("background", "both") else plain
                found = detected(head, embeddings[of], way in ("energy", "both"))
                events[way, is_new] += [bool(found[groups[of] == clip].any()) for clip in np.unique(groups[of])]
    section = Section("product", "Unknown sounds", "python -m tools.bench_unknown encoder.pt", "unknown")
    section.add("unknown_auroc", float(np.mean(areas)), "", "energy, windows of classes never heard against known ones")
    for is_new, name in ((True, "unknown_found"), (False, "known_taken_for_unknown")):
        section.add(name, float(np.mean(told["unknown", is_new])), "", "share of windows below the head's least energy")
    for way in _WAYS:
        shares = [f"{np.mean(events[way, is_new]):.3f}" for is_new in (True, False)]
        section.detail(
            f"clips in which a label is detected, {way}: of unknown sounds, of known ones", ", ".join(shares)
        )
    return section


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--no-publish", action="store_true", help="print the numbers and leave docs/ alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    section = measure(given.encoder, given.audio)
    if given.no_publish:
        show(section)
    else:
        publish(section)


if __name__ == "__main__":
    main()
