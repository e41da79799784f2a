"""Measures what hiding words costs: accuracy on sounds against words recognised in what is shipped.

    python -m tools.bench_hiding encoder.pt pool --audio recordings/ [--name mn04] [--publish]

`recordings/esc10` and `recordings/speech_commands` have a labels.csv each. For each fold of ESC-10 a bottleneck is
fitted to the other folds' windows and judged on the fold's clips by a linear head that was fitted to the whole
encoder's embeddings of the others (as in `tools.bench_bottlenecks`). Words are hidden with recordings of speakers in
folds 1 to 4 of Speech Commands; the audit's recognisers then learn afresh from the same recordings, or from those of
speakers whom the bottleneck never heard, and are judged on fold 5.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from runtime_edge.formats.latent_codec import quantise
from runtime_edge.formats.manifest import Cut
from runtime_edge.inference.cut_assets.bottleneck import with_noise
from runtime_server.lab.clips import Clips, load_clips
from streamsplit_compile.audit.outlets import Arrived
from streamsplit_compile.audit.recogniser import attack_on, interval
from streamsplit_compile.audit.spoken_recordings import SpokenRecordings, read_spoken
from streamsplit_compile.bottleneck.block import Bottleneck
from streamsplit_compile.bottleneck.hiding import HIDING_CHANNELS, Label, LabelledActivations
from streamsplit_compile.bottleneck.training import widened
from streamsplit_compile.bundle.cut_assets.bottlenecks import Fitted, closed_form, fit
from streamsplit_compile.encoder.encoders import load_encoder
from streamsplit_compile.encoder.segment import run_segments, split
from tools.bench_bottlenecks import cut_of
from tools.benchmarks import Section, publish, show

Array = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
WIDTHS = (8, HIDING_CHANNELS)
HEADLINE = "hide words"
MOST_WORDS = 0.2
"""The most words that may be recognised of hidden ones; chance is 0.1."""


@dataclass(frozen=True)
class Arm:
    """One way to make what is shipped tell less."""

    name: str
    steps: int = 0
    hidden: tuple[Label, ...] = ()
    noise: float = 0.0
    """Standard deviation of the noise that is added before rounding, in steps of the latent."""
    erased: bool = False
    """Whether the directions that tell words apart are removed in closed form before training."""
    strangers: bool = False
    """Whether recognisers learn from speakers whom the bottleneck never heard, half to each."""


def arms(steps: int) -> list[Arm]:
    """What is compared."""
    return [
        Arm("closed form"),
        Arm("trained", steps),
        Arm("trained, noise 1", steps, noise=1.0),
        Arm("trained, noise 2", steps, noise=2.0),
        Arm("words erased", steps, erased=True),
        Arm(HEADLINE, steps, ("words",)),
        Arm("words erased, hide words", steps, ("words",), erased=True),
        Arm("hide words and speakers", steps, ("words", "speakers")),
        Arm("hide words, strangers", steps, ("words",), strangers=True),
    ]


@dataclass(frozen=True)
class Material:
    """Everything at one cut."""

    cut: Cut
    suffix: Sequence[torch.fx.GraphModule]
    clips: Clips
    activations: torch.Tensor
    """(clips, windows, ...)."""
    whole: Array
    """(clips, windows, d): embeddings of the whole encoder."""
    spoken: SpokenRecordings
    spoken_at: torch.Tensor
    """(recordings, ...)."""
    folds: npt.NDArray[np.int64]
    """(recordings,): halves 0 and 1 of the speakers."""


def material(encoder_file: Path, name: str, audio: Path, hop_share: float) -> Material:
    """Run every recording through an encoder, cut at `name`; windows of sounds begin each so much of one apart."""
    encoder, clips = load_encoder(encoder_file), load_clips(audio, "esc10")
    by_name = {candidate.name: candidate for candidate in encoder.graph.candidates}
    chosen, ends = by_name[name], list(by_name.values())
    segments = split(encoder.graph, [ends[0], chosen, ends[-1]])
    windows = clips.windows(encoder.window_samples, round(hop_share * encoder.window_samples))
    spoken = read_spoken(audio / "speech_commands", encoder.sample_rate, encoder.window_samples)
    with torch.inference_mode():
        activations = torch.stack([run_segments(segments[:1], torch.from_numpy(clip.copy())) for clip in windows])
        whole = torch.stack([run_segments(segments[1:], clip) for clip in activations]).numpy()
        parts = torch.split(torch.from_numpy(spoken.windows), 64)
        spoken_at = torch.cat([run_segments(segments[:1], part) for part in parts])
    cut = cut_of(name, chosen.node, chosen.shape)
    return Material(
        cut, segments[1:], clips, activations.clone(), whole, spoken, spoken_at.clone(), spoken.speakers % 2
    )


def fitted(given: Material, arm: Arm, fold: int, seed: int) -> Bottleneck:
    """The bottleneck of one arm, fitted to all folds of sounds but one."""
    train = torch.from_numpy(given.clips.folds != fold)
    speech = ~given.spoken.test & ((given.folds == 0) | (not arm.strangers))
    every: dict[Label, npt.NDArray[np.int64]] = {"words": given.spoken.words, "speakers": given.spoken.speakers}
    labels = {name: np.unique(every[name][speech], return_inverse=True)[1] for name in (arm.hidden or ("words",))}
    hidden = LabelledActivations(
        given.spoken_at[torch.from_numpy(speech)], {name: torch.from_numpy(found) for name, found in labels.items()}
    )
    embeddings = torch.from_numpy(given.whole)[train].flatten(0, 1)
    data = Fitted(given.activations[train].flatten(0, 1), embeddings, given.suffix, hidden)
    begin = closed_form(given.cut, data)
    if arm.erased:
        begin = erased(begin, hidden)
    data = data if arm.hidden else replace(data, hidden=None)
    return fit(given.cut, data, arm.steps, seed, None, widths=list(WIDTHS), begin=begin)


def erased(block: Bottleneck, hidden: LabelledActivations) -> Bottleneck:
    """The block without the directions that tell words apart linearly (LEACE: Belrose et al., arXiv 2306.03819).

    Only where the latent has one position. The means of all words become equal in the activation.
    """
    rows, labels = hidden.activations.flatten(1).double().numpy(), hidden.labels["words"].numpy()
    centre = rows.mean(0)
    values, vectors = np.linalg.eigh(np.cov((rows - centre).T))
    roots = np.sqrt(np.maximum(values, values.max() * 1e-6))
    means = np.stack([rows[labels == label].mean(0) for label in np.unique(labels)]) - centre
    basis = np.linalg.svd(((means @ vectors) / roots).T, full_matrices=False)[0][:, : len(means) - 1]
    eraser = np.eye(len(roots)) - ((vectors * roots) @ basis) @ ((vectors / roots) @ basis).T
    weights = block.analysis.weight.detach().flatten(1).double().numpy()
    with torch.no_grad():
        block.analysis.weight.copy_(torch.from_numpy(weights @ eraser).reshape(block.analysis.weight.shape))
        assert block.analysis.bias is not None
        block.analysis.bias += torch.from_numpy(weights @ (centre - eraser @ centre)).float()
    return block


def shipped(block: Bottleneck, activations: torch.Tensor, width: int, arm: Arm, seed: int) -> torch.Tensor:
    """What arrives of activations (n, ...) at a width: (n, width, rows, columns)."""
    with torch.inference_mode():
        latents = torch.cat([block.encode(part) for part in torch.split(activations, 64)])[:, :width].numpy()
    noisy = with_noise(latents, arm.noise, np.random.default_rng(seed))
    return torch.from_numpy(quantise(noisy).astype(np.float32))


def completed(given: Material, block: Bottleneck, latents: torch.Tensor) -> Array:
    """Embeddings (n, d) of latents (n, width, rows, columns)."""
    with torch.inference_mode():
        parts = torch.split(widened(latents, block.analysis.out_channels), 64)
        found: Array = torch.cat([run_segments(given.suffix, block.decode(part)) for part in parts]).numpy()
    return found


def heads(given: Material) -> dict[int, Any]:
    """For each fold a linear head that was fitted to the whole encoder's embeddings of the others."""
    found = {}
    for fold in np.unique(given.clips.folds):
        train = given.clips.folds != fold
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        found[int(fold)] = head.fit(given.whole[train].mean(1), given.clips.labels[train])
    return found


@dataclass
class Found:
    """What one arm gave at one width."""

    right: list[Flags]
    plain: list[Flags]
    words: list[Flags]
    speakers: list[Flags]

    @property
    def lost(self) -> float:
        """Points of accuracy on sounds that are lost."""
        return 100 * float(np.concatenate(self.plain).mean() - np.concatenate(self.right).mean())


def measured(
    given: Material,
    arm: Arm,
    folds: Sequence[int],
    attacked: Sequence[int],
    seed: int,
    widths: Sequence[int] = WIDTHS,
) -> dict[int, Found]:
    """The arm judged on some folds of sounds; words and speakers are attacked in the bottlenecks of `attacked`."""
    judges, found = heads(given), {width: Found([], [], [], []) for width in widths}
    listening = given.spoken.test | (given.folds == 1) | (not arm.strangers)
    spoken = SpokenRecordings(
        given.spoken.windows[listening],
        given.spoken.words[listening],
        given.spoken.speakers[listening],
        given.spoken.test[listening],
        given.spoken.vocabulary,
    )
    for fold in folds:
        block = fitted(given, arm, fold, seed)
        test = given.clips.folds == fold
        expected = given.clips.labels[test]
        for width, into in found.items():
            heard = shipped(block, given.activations[torch.from_numpy(test)].flatten(0, 1), width, arm, seed)
            through = completed(given, block, heard).reshape(int(test.sum()), given.whole.shape[1], -1)
            into.right.append(judges[fold].predict(through.mean(1)) == expected)
            into.plain.append(judges[fold].predict(given.whole[test].mean(1)) == expected)
            if fold in attacked:
                latents = shipped(block, given.spoken_at[torch.from_numpy(listening)], width, arm, seed)
                attack = attack_on(Arrived(latents.numpy(), completed(given, block, latents)), spoken, seed)
                into.words.append(attack.words)
                if attack.speakers is not None:
                    into.speakers.append(attack.speakers)
    return found


def told(arm: Arm, width: int, found: Found) -> str:
    """One arm at one width, in words."""
    words, low, high = interval(found.words)
    speakers = f"; speakers {interval(found.speakers)[0]:.3f}" if found.speakers else ""
    clips = sum(map(len, found.right))
    return (
        f"{arm.name}, width {width}: words {words:.3f} ({low:.3f} to {high:.3f}, {len(found.words)} attacked)"
        f"{speakers}; points lost {found.lost:.2f} of {clips} clips"
    )


def add(section: Section, name: str, cut: str, arm: Arm, found: dict[int, Found]) -> None:
    """Add an arm's widths, and of the headline's the one that loses least and hides enough, or else hides most."""
    for width, one in found.items():
        section.detail(f"{arm.name}, width {width}", told(arm, width, one))
    if arm.name == HEADLINE:
        heard = {width: interval(one.words)[0] for width, one in found.items()}
        enough = [width for width in found if heard[width] <= MOST_WORDS]
        chosen = min(enough, key=lambda width: found[width].lost) if enough else min(heard, key=heard.__getitem__)
        what = f"{cut}/{chosen}: {told(arm, chosen, found[chosen])}"
        section.add(f"hidden_word_recognition.{name}", heard[chosen], f"at most {MOST_WORDS:g}", what)
        section.add(f"hidden_points_lost.{name}", found[chosen].lost, "at most 2", what)


def main() -> None:
    """Print one line for each arm and width; publish the headline's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("cut")
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--name", default="mn04", help="Of the encoder, in docs/benchmarks.*.")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", help="Names of the arms to measure, comma-separated after `;` [default: all].")
    parser.add_argument("--widths", default=",".join(map(str, WIDTHS)), help="To judge, comma-separated.")
    parser.add_argument("--fold", type=int, help="Judge sounds on this fold alone: the encoder knows the others.")
    parser.add_argument("--hop-share", type=float, default=0.5, help="Between windows of a clip.")
    parser.add_argument("--publish", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    at_cut = material(given.encoder, given.cut, given.audio, given.hop_share)
    command = f"python -m tools.bench_hiding {given.name}.pt {given.cut} --audio ... --steps {given.steps}"
    section = Section("privacy", f"Hiding words: {given.name} at {given.cut}", command, f"hiding.{given.name}")
    for arm in arms(given.steps):
        if given.arms is not None and arm.name not in given.arms.split(";"):
            continue
        folds, attacked = ([1, 2, 3, 4, 5], [1, 3, 5]) if arm.name == HEADLINE else ([1, 3, 5], [5])
        folds, attacked = (folds, attacked) if given.fold is None else ([given.fold], [given.fold])
        found = measured(at_cut, arm, folds, attacked, given.seed, [int(one) for one in given.widths.split(",")])
        add(section, given.name, given.cut, arm, found)
        print("\n".join(told(arm, width, one) for width, one in found.items()), flush=True)
    publish(section) if given.publish else show(section)


if __name__ == "__main__":
    main()
