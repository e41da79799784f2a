"""Measures what first answers cost in accuracy, and how well novelty detects sounds that were never heard.

    python -m tools.bench_exits mn04=mn04.pt@features.7 small=encoder.pt@features.8 --audio recordings/ [--no-publish]

Each argument is a name, a checkpoint and one of its cuts. For each fold the exit is fitted to the windows of the other
folds' recordings, which also train a linear head on the whole encoder's embeddings. That head then judges the exit's
embeddings of the fold's own clips.

For novelty two classes are left out at a time, from both the exit and the memory. The memory learns from the whole
encoder's embeddings, as it does from a server's answers, and then judges windows of the fold's own clips of all
classes. The area under the ROC curve is for telling windows of the two classes from the others; it is the mean over
folds and pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from runtime_edge.formats.manifest import Cut
from runtime_edge.formats.records.actions import ShipThresholds
from runtime_edge.formats.records.head import Head, entropy
from runtime_edge.policy.memory import GaussianMemory
from runtime_edge.policy.ship_gate import ShipGate
from runtime_server.lab.clips import Clips, load_clips
from runtime_server.labels.head_training import Examples, fit_head
from streamsplit_compile.bundle.cut_assets.exits import statistics_of
from streamsplit_compile.cost.cost_model import count_work
from streamsplit_compile.encoder.encoders import load_encoder
from streamsplit_compile.encoder.segment import split
from streamsplit_compile.exits.exit_map import ExitMap, exit_layout
from streamsplit_compile.exits.ridge import basis_of, fit_exit
from tools.bench_bottlenecks import cut_of
from tools.benchmarks import Section, publish, show
from tools.judged_clips import interval

Array = npt.NDArray[np.float32]
_GOAL = "at most 4"
_JUDGED_EVERY = 2
"""Every how many of a clip's overlapping windows one is judged."""


@dataclass(frozen=True)
class Heard:
    """An encoder's results on labelled clips."""

    cut: Cut
    work: float
    """The prefix's share of the multiply-adds after the front end."""
    statistics: torch.Tensor
    """(clips, windows, features) that the exit at the cut uses."""
    whole: torch.Tensor
    """(clips, windows, d) embeddings of the whole encoder."""
    clips: Clips

    def exit_of(self, chosen: npt.NDArray[np.bool_]) -> ExitMap:
        """Fit the exit to the chosen clips (clips,)."""
        layout, at = exit_layout(self.cut), torch.from_numpy(chosen)
        assert layout is not None
        embeddings = self.whole[at].flatten(0, 1)
        return fit_exit(layout, self.statistics[at].flatten(0, 1), embeddings, basis_of(embeddings))

    def by_exit(self, early: ExitMap, chosen: npt.NDArray[np.bool_]) -> Array:
        """The exit's embeddings (clips, windows, d) of the chosen clips."""
        with torch.inference_mode():
            found = early.from_statistics(self.statistics[torch.from_numpy(chosen)].flatten(0, 1)).numpy()
        return found.reshape(int(chosen.sum()), -1, found.shape[-1])


def hear(path: Path, name: str, clips: Clips) -> Heard:
    """Run an encoder on all clips and keep the statistics that the exit at a cut uses."""
    encoder = load_encoder(path)
    candidates = encoder.graph.candidates
    chosen = next(candidate for candidate in candidates if candidate.name == name)
    image = next((candidate for candidate in candidates if encoder.ends_log_mel(candidate)), candidates[0])
    parts = split(encoder.graph, [candidates[0], image, chosen, candidates[-1]])
    _, before, behind = (count_work(part).macs for part in parts)
    cut = cut_of(name, chosen.node, chosen.shape)
    windows = clips.windows(encoder.window_samples, encoder.window_samples // 2)
    flat = np.ascontiguousarray(windows.reshape(-1, windows.shape[-1]))
    segments = split(encoder.graph, [candidates[0], chosen, candidates[-1]])
    statistics, whole = statistics_of([cut], segments, flat)
    shape = windows.shape[:2]
    return Heard(
        cut,
        before / (before + behind),
        statistics[cut.name].reshape(*shape, -1),
        whole.reshape(*shape, -1),
        clips,
    )


def points_lost(heard: Heard) -> tuple[float, float, float, float, float]:
    """Accuracy by clip of the whole encoder and of the exit, the interval of their difference, the median cosine."""
    clips, whole, by_whole, by_exit, cosines = heard.clips, heard.whole.numpy(), [], [], []
    for fold in np.unique(clips.folds):
        train, test = clips.folds != fold, clips.folds == fold
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        head.fit(whole[train].mean(1), clips.labels[train])
        found = heard.by_exit(heard.exit_of(train), test)
        by_whole.append(head.predict(whole[test].mean(1)) == clips.labels[test])
        by_exit.append(head.predict(found.mean(1)) == clips.labels[test])
        cosines.append((found * whole[test]).sum(-1).ravel())
    plain, early = np.concatenate(by_whole), np.concatenate(by_exit)
    return float(plain.mean()), float(early.mean()), *interval(plain, early), float(np.median(np.concatenate(cosines)))


def novelty(heard: Heard) -> dict[str, float]:
    """Areas under the ROC curve: novelty and uncertainty of the exit's embeddings, and of the whole encoder's."""
    areas: dict[str, list[float]] = {}
    for left_out, train, test in _pairs(heard.clips):
        known = ~np.isin(heard.clips.labels, left_out)
        whole = heard.whole.numpy()
        memory = GaussianMemory(dim=whole.shape[-1])
        for clip in np.random.default_rng(0).permutation(np.flatnonzero(train & known)):
            memory.learn(whole[clip])
        asked = {"exit": heard.by_exit(heard.exit_of(train & known), test), "whole": whole[test]}
        is_new = np.repeat(~known[test], len(range(0, whole.shape[1], _JUDGED_EVERY)))
        for who, embeddings in asked.items():
            judged = [memory.judge(window) for clip in embeddings for window in clip[::_JUDGED_EVERY]]
            for what, values in zip(("uncertainty", "novelty"), zip(*judged, strict=True), strict=True):
                areas.setdefault(f"{what} by {who}", []).append(float(roc_auc_score(is_new, values)))
    return {name: float(np.mean(found)) for name, found in areas.items()}


def kept(heard: Heard) -> dict[str, float]:
    """Share of windows that a table's default thresholds ship, and accuracy by clip from each window's last answer.

    The head is fitted as `ssc server label` does, with a temperature for the exit; a clip's label is the one with the
    best mean score over its windows. `random` ships as many windows chosen at random.
    """
    clips, whole, shipped, right = heard.clips, heard.whole.numpy(), [], dict[str, list[npt.NDArray[np.bool_]]]()
    random = np.random.default_rng(0)
    for fold in np.unique(clips.folds):
        train, test = clips.folds != fold, clips.folds == fold
        early = heard.exit_of(train)
        head = _head(heard, early, train)
        first, final = head.scores(heard.by_exit(early, test), heard.cut.name), head.scores(whole[test])
        gate, chosen = ShipGate(ShipThresholds()), np.zeros(first.shape[:2], np.bool_)
        for clip in random.permutation(len(first)):
            chosen[clip] = [gate.ships(entropy(scores, head.scores_by)) for scores in first[clip]]
        by_chance = random.permutation(chosen.ravel()).reshape(chosen.shape)
        shipped.append(chosen.mean())
        for name, sent in (
            ("exit", chosen & False),
            ("kept", chosen),
            ("random", by_chance),
            ("server", chosen | True),
        ):
            scores = np.where(sent[..., None], final, first).mean(1)
            right.setdefault(name, []).append(scores.argmax(1) == clips.labels[test])
    return {"share": float(np.mean(shipped)), **{name: float(np.concatenate(v).mean()) for name, v in right.items()}}


def _head(heard: Heard, early: ExitMap, chosen: npt.NDArray[np.bool_]) -> Head:
    """Fit a head to the windows of the chosen clips."""
    windows = heard.whole.shape[1]
    labels = np.repeat(heard.clips.labels[chosen], windows)
    examples = Examples(
        heard.whole.numpy()[chosen].reshape(len(labels), -1),
        tuple(str(label) for label in np.unique(heard.clips.labels)),
        labels[:, None] == np.unique(heard.clips.labels),
        np.repeat(np.arange(int(chosen.sum())), windows),
        (1, 1),
        by_exit={heard.cut.name: heard.by_exit(early, chosen).reshape(len(labels), -1)},
    )
    return fit_head(examples, "bench", "bench")


def _pairs(clips: Clips) -> Iterator[tuple[Sequence[int], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]:
    """Yields two labels to leave out, the clips of the other folds, and those of the fold."""
    labels = np.unique(clips.labels).tolist()
    for fold in np.unique(clips.folds):
        for place in range(0, len(labels) - 1, 2):
            yield labels[place : place + 2], clips.folds != fold, clips.folds == fold


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="+", metavar="NAME=FILE@CUT")
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--data", default="esc10")
    parser.add_argument("--no-publish", action="store_true", help="print the numbers and leave docs/ alone")
    given = parser.parse_args()
    section = Section("pay", "First answers", "python -m tools.bench_exits", part="exits")
    clips = load_clips(given.audio, given.data)
    for encoder in given.encoders:
        name, _, rest = encoder.partition("=")
        path, _, cut = rest.rpartition("@")
        heard = hear(Path(path), cut, clips)
        whole, early, low, high, cosine = points_lost(heard)
        areas = novelty(heard)
        where = f"{name} at {cut}, {heard.work:.0%} of the work past the front end"
        what = f"points: {where}; {early:.4f} for {whole:.4f} of {len(clips.labels)} clips, {low:.2f} to {high:.2f}"
        section.add(f"exit_points_lost.{name}", 100 * (whole - early), _GOAL, f"{what}; median cosine {cosine:.4f}")
        said = kept(heard)
        section.add(f"share_shipped.{name}", said["share"], "", f"{where}: of windows, by a table's default thresholds")
        accuracies = ", ".join(f"{who} {said[who]:.4f}" for who in ("exit", "kept", "random", "server"))
        section.detail(f"{where}: accuracy by exits, thresholds, as many windows by chance, the server", accuracies)
        for words, area in areas.items():
            if words == "novelty by exit":
                section.add(f"novelty_auroc.{name}", area, "", f"{where}: {words}'s embedding")
            else:
                section.detail(f"{where}: AUROC of {words}'s embedding", f"{area:.3f}")
    (show if given.no_publish else publish)(section)


if __name__ == "__main__":
    main()
