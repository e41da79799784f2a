"""Trains an encoder on real recordings, so that it recognises sounds out of the box.

    python -m tools.train_reference mobilenet_v3_small --audio recordings/ [--teacher mn04_as_mAP_432.pt] [--publish]
    ssc encoder new mobilenet_v3_small --weights .cache/reference/mobilenet_v3_small.speech-and-sounds.npz -o encoder.pt

`recordings/esc10/labels.csv` and `recordings/speech_commands/labels.csv` name the recordings with class and fold.
Training uses folds 1 to 4, with a tenth of their sources and speakers set aside for early stopping; the written weights
are judged once on fold 5. `--weights-of sounds` learns from ESC-10 alone, without any words. With `--teacher`,
EfficientAT's checkpoint, the embedding also learns from that one's embeddings.

After an interruption, the same command continues; the same recordings and options on the same machine give the same
bytes. Images of the recordings are computed once and kept in `--cache`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.formats.records.head import Head, Validation
from runtime_server.labels.head_training import average_precision, mean_by_group, right_rows
from runtime_server.labels.labelled import read_clips, windows_of
from streamsplit_compile.encoder.encoders import new_encoder
from streamsplit_compile.encoder.published.trained import TrainedWeights, packed
from tools.benchmarks import Section, publish, show
from tools.reference.corpus import GATE_DB, HELD_OUT_FOLD, corpus_key, few, load_corpus
from tools.reference.training import SCALE, Course, Recipe

USUAL = "speech-and-sounds"
VARIANTS = {USUAL: ("esc10", "speech_commands"), "sounds": ("esc10",)}
GOAL = "at least 0.85"
_WINDOWS_OF_A_CLIP = 64
_BATCH = 64
_TEMPERATURES = np.geomspace(0.2, 5, 65)
_ATTRIBUTION = {
    "esc10": (
        "ESC-10, a subset of ESC-50 (K. J. Piczak, ESC: Dataset for Environmental Sound Classification, 2015), of "
        "recordings on freesound.org under CC0, CC BY and CC Sampling+; the authors are named in ESC-50's LICENSE"
    ),
    "speech_commands": "Speech Commands v0.02 (P. Warden, arXiv 1804.03209, 2018), CC BY 4.0",
}


def trained_weights(course: Course, encoder: str, variant: str, taught: bool) -> TrainedWeights:
    """The best epoch's weights and head, with a temperature fitted to the recordings for early stopping."""
    state = course.best
    inside = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    names = tuple(str(name) for name in course.corpus.names)
    recordings = "; ".join(_ATTRIBUTION[one] for one in VARIANTS[variant])
    teacher = "; distilled from EfficientAT's mn04 (F. Schmid et al., MIT licence)" if taught else ""
    head = Head(
        encoder=encoder,
        embedding_dim=state["head.weight"].shape[1],
        generations=(1, 1),
        model=None,
        temperature=_temperature(course),
        labels=names,
        scores_by="softmax",
        thresholds=(0.5,) * len(names),
        validation=None,
        created_by="tools.train_reference",
        bias=(SCALE * state["head.bias"]).numpy().astype("<f4").tobytes(),
        weights=(SCALE * state["head.weight"]).numpy().astype("<f4").tobytes(),
    )
    return TrainedWeights(encoder, {}, f"Trained on {recordings}{teacher}.", packed(inside), head)


def _temperature(course: Course) -> float:
    """The divisor of logits that gives the least log loss on the recordings for early stopping."""
    logits, owners = course.logits(course.best, course.split.validation)
    truth = torch.from_numpy(course.corpus.labels[course.split.validation][owners])
    losses = [float(torch.nn.functional.cross_entropy(logits / heat, truth)) for heat in _TEMPERATURES]
    return round(float(_TEMPERATURES[int(np.argmin(losses))]), 3)


def judge(trained: TrainedWeights, table: Path, fold: int = HELD_OUT_FOLD, most: int | None = None) -> Validation:
    """Judge the weights as a device runs them, window by window, on one fold of a data set."""
    module, _ = trained.build({})
    front: Any = module.front_end
    info = FrontEndInfo(
        sample_rate=front.sample_rate, window_samples=front.window_samples, hop_samples=front.hop_samples, details={}
    )
    clips = few([clip for clip in read_clips(table) if clip.fold == fold], most)
    heard = windows_of(clips, info, _WINDOWS_OF_A_CLIP, GATE_DB)
    with torch.inference_mode():
        parts = [module(part) for part in torch.from_numpy(heard.embeddings).split(_BATCH)]
    assert trained.head is not None
    scores = trained.head.scores(torch.cat(parts).numpy()).astype(np.float64)
    truth = np.zeros(scores.shape, np.bool_)
    places = [trained.head.labels.index(label) for label in heard.labels]
    truth[:, places] = heard.truth
    groups, first = np.unique(heard.groups, return_index=True)
    by_clip = mean_by_group(scores, heard.groups)
    return Validation(
        split=f"fold {fold} of {table.parent.name}",
        windows=len(scores),
        groups=len(groups),
        accuracy=float(right_rows(scores, truth, True).mean()),
        group_accuracy=float(right_rows(by_clip, truth[first], True).mean()),
        average_precision=average_precision(scores[:, places], truth[:, places]),
    )


def pooled(parts: Sequence[Validation]) -> Validation:
    """Combine data sets into one, each weighted by its size."""
    windows, groups = [part.windows for part in parts], [part.groups for part in parts]
    return Validation(
        split=" and ".join(part.split for part in parts),
        windows=sum(windows),
        groups=sum(groups),
        accuracy=float(np.average([part.accuracy for part in parts], weights=windows)),
        group_accuracy=float(np.average([part.group_accuracy for part in parts], weights=groups)),
        average_precision=float(np.average([part.average_precision for part in parts], weights=windows)),
    )


def train(given: argparse.Namespace) -> tuple[Course, dict[str, Validation]]:
    """Train or continue, write the file, and judge the written weights by data set."""
    recipe = Recipe(**{field.name: getattr(given, field.name) for field in fields(Recipe)})
    torch.set_num_threads(recipe.threads)
    tables = {name: given.audio / name / "labels.csv" for name in VARIANTS[given.weights_of]}
    encoder, _ = new_encoder(given.encoder, {"seed": recipe.seed})
    heard = (encoder, list(tables.values()), given.teacher, given.clips)
    corpus = load_corpus(given.cache, *heard)
    name = f"{given.encoder}.{given.weights_of}"
    course = Course(encoder, corpus, recipe, given.cache / f"{name}.{recipe.seed}.{corpus_key(*heard)}")
    course.run(note=lambda line: print(line, flush=True))
    trained = trained_weights(course, given.encoder, given.weights_of, given.teacher is not None)
    judged = {name: judge(trained, table, most=given.clips) for name, table in tables.items()}
    assert trained.head is not None
    head = msgspec.structs.replace(trained.head, validation=pooled(list(judged.values())))
    replace(trained, head=head).write(given.cache / f"{name}.npz")
    return course, judged


def section(encoder: str, variant: str, course: Course, judged: dict[str, Validation]) -> Section:
    """The figures for the page."""
    group = encoder if variant == USUAL else f"{encoder}_{variant}"
    command = f"python -m tools.train_reference {encoder} --weights-of {variant} --teacher ..."
    found = Section("reference", f"Trained encoders: {encoder}, {variant}", command, part=group)
    for name, validation in judged.items():
        what = f"clips of {validation.split} ({validation.groups}); windows {validation.accuracy:.3f}"
        found.add(f"{group}.{name}", validation.group_accuracy, GOAL, what)
    recipe = course.recipe
    found.detail("epochs; the best one on recordings held out for that", f"{course.epoch}; {course.best_epoch}")
    found.detail(f"CPU minutes of training, {recipe.threads} thread(s)", f"{course.seconds / 60:.0f}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", choices=("mobilenet_v3_small", "resnet18"))
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="mn04_as_mAP_432.pt of EfficientAT's releases.")
    parser.add_argument("--weights-of", choices=VARIANTS, default=USUAL)
    parser.add_argument("--cache", type=Path, default=Path(".cache/reference"))
    parser.add_argument("--clips", type=int, help="At most so many recordings of each class and fold.")
    parser.add_argument("--publish", action="store_true", help="Put the figures into docs/benchmarks.*.")
    for field in fields(Recipe):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    given = parser.parse_args(arguments)
    course, judged = train(given)
    figures = section(given.encoder, given.weights_of, course, judged)
    if given.publish:
        publish(figures)
    else:
        show(figures)


if __name__ == "__main__":
    main()
