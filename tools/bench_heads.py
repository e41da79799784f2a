"""Measures what a head loses while its encoder goes on learning: ten releases, on clips that the head never saw.

    python -m tools.bench_heads encoder.pt --audio recordings/ [--seeds 3] [--releases 10] [--no-publish]

For ESC-10 and Speech Commands (`recordings/<set>/labels.csv`): a head is fitted to folds 1 to 4, as `ssc server label`
does; four devices play these folds without labels, and the server's trainer learns from a quarter of the windows at
mixed cuts (`tools.sparse_training`). After each pass the head's own clips judge the averaged weights as the release
gate does; a release comes with a refitted head. Fold 5 is judged before and after. For comparison, the first head is
also judged on the embeddings of the last release.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from msgspec.structs import replace

from runtime_edge.formats.records.head import Head
from runtime_server.lab.clips import CLIP_SAMPLES, SAMPLE_RATE, load_clips
from runtime_server.labels.head_clips import HeadClips
from runtime_server.labels.head_training import Examples, fit_head, right_rows
from runtime_server.releases.head_judge import compared
from runtime_server.suffix.generations import CutModel
from streamsplit_compile.encoder.encoders import load_encoder
from tools.benchmarks import Section, publish, show
from tools.sparse_training import HELD_OUT_FOLD, Stage, TrainingRun, stage, train

SETS = {"esc10": CLIP_SAMPLES, "speech_commands": SAMPLE_RATE}
"""Number of samples in a recording of each set."""
_MOST_WINDOWS = 1024
_MOST_CLIPS = 30
"""The most clips of each class and fold: training on all of Speech Commands takes hours."""
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """Shares of fold 5's clips labelled correctly, for one set and seed."""

    before: float
    after: float
    """Share with the head of the last release."""
    stale: float
    """Share with the first head, on the embeddings of the last release."""
    released: int
    refused: int


def measure(encoder: Path, audio: Path, data: str, seed: int, releases: int, work: Path) -> Outcome:
    """Do one run."""
    loaded, clips = load_encoder(encoder), load_clips(audio, data, SETS[data]).at_most(_MOST_CLIPS)
    staged = stage(loaded, clips, audio / data, work)
    first, kept = _head(staged)
    run = TrainingRun(passes=releases, seed=seed)
    used = [(first, staged.start, kept)]
    refused = 0

    def release(candidate: CutModel) -> None:
        nonlocal refused
        own = used[-1][2]
        right = own.right(candidate)
        best = np.frombuffer(own.best, np.uint8).astype(np.bool_)
        if compared("all", right, best).worse:
            refused += 1
            return
        again = own.refitted(candidate)
        best = right if right.sum() >= best.sum() else best
        used.append((again, candidate, replace(own, head=again.to_json(), best=best.astype(np.uint8).tobytes())))

    train(staged, run, after_pass=release)
    last, model, _ = used[-1]
    return Outcome(
        float(_right(staged, staged.start, first).mean()),
        float(_right(staged, model, last).mean()),
        float(_right(staged, model, first).mean()),
        len(used) - 1,
        refused,
    )


def _head(staged: Stage) -> tuple[Head, HeadClips]:
    """A head fitted to folds 1 to 4, and the clips as a server keeps them."""
    front_end, clips = staged.bundle.manifest.info.front_end, staged.clips
    known = np.flatnonzero(clips.folds != HELD_OUT_FOLD)
    embeddings = staged.embedded(staged.start)[known]
    labels = tuple(f"class {label}" for label in range(int(clips.labels.max()) + 1))
    places = np.repeat(np.arange(len(known)), embeddings.shape[1])
    truth = (clips.labels[known][:, None] == np.arange(len(labels)))[places]
    examples = Examples(embeddings.reshape(len(places), -1), labels, truth, places, (1, 1))
    head = fit_head(examples, staged.encoder.id, "tools.bench_heads")
    kept = known[:: -(-len(known) // _MOST_WINDOWS)]
    windows = clips.windows(front_end.window_samples, front_end.hop_samples)[kept]
    each = max(1, _MOST_WINDOWS // len(kept))
    chosen = np.linspace(0, windows.shape[1] - 1, min(each, windows.shape[1])).round().astype(int)
    heard = windows[:, chosen].reshape(-1, front_end.window_samples)
    clips_kept = HeadClips(
        head=head.to_json(),
        clips=[(labels[label],) for label in clips.labels[kept]],
        places=np.repeat(np.arange(len(kept)), len(chosen)).tolist(),
        windows=heard.astype("<f2").tobytes(),
    )
    best = clips_kept.right(staged.start).astype(np.uint8).tobytes()
    return head, replace(clips_kept, best=best, best_generation=1)


def _right(staged: Stage, model: CutModel, head: Head) -> Bools:
    """Which of fold 5's clips a head labels correctly, by mean scores, (clips,)."""
    out = staged.clips.folds == HELD_OUT_FOLD
    embeddings = staged.embedded(model)[out]
    scores = head.scores(embeddings).mean(axis=1).astype(np.float64)
    truth = staged.clips.labels[out][:, None] == np.arange(len(head.labels))
    return right_rows(scores, truth, exclusive=True)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--data", choices=SETS, action="append", help="One set [default: both].")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--releases", type=int, default=10)
    parser.add_argument("--no-publish", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    section = Section("pay", "Heads over releases", f"python -m tools.bench_heads {given.encoder.name}", "heads")
    for data in given.data or SETS:
        found = []
        for seed in range(given.seeds):
            with tempfile.TemporaryDirectory(prefix="ssc-bench-") as work:
                found.append(measure(given.encoder, given.audio, data, seed, given.releases, Path(work)))
            print(f"{data}, seed {seed}: {found[-1]}", flush=True)
        lost = 100 * statistics.mean(one.before - one.after for one in found)
        told = f"points of fold 5's clips, {data}, after {given.releases} passes, mean of {given.seeds} seeds"
        section.add(f"head_points_lost.{data}", lost, "at most 1", told)
        section.detail(
            f"{data}, by seed: right before, after, by the first head after; released, refused",
            "; ".join(
                f"{one.before:.3f}, {one.after:.3f}, {one.stale:.3f}; {one.released}, {one.refused}" for one in found
            ),
        )
    show(section) if given.no_publish else publish(section)


if __name__ == "__main__":
    main()
