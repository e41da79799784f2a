"""Trains an encoder and its head on labelled recordings, with a pretrained encoder as a teacher.

    course = Course(encoder, corpus, Recipe(), work)
    course.run()
    course.best                     # state_dict and head of the epoch that did best on held-out recordings

The loss is the labels' cross-entropy plus the distance of a linear map of the embedding from the teacher's embedding.
Every epoch is kept on disk; an interrupted run continues where it was and ends in the same bytes.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime_edge.base.files import write_atomic
from runtime_edge.errors import UsageError
from runtime_server.labels.head_training import mean_by_group
from streamsplit_compile.encoder.segment import by_channels
from tools.reference.corpus import HELD_OUT_FOLD, Corpus, Integers
from tools.reference.crops import augmented, windows

SCALE = 16.0
"""Scale of the head's logits, since embeddings have unit norm."""
VALIDATION_SHARE = 0.1
AVERAGE_DECAY = 0.995
"""Decay of the running mean of the weights; this mean is judged and kept."""
_WARM_UP_EPOCHS = 3
_BATCH = 64


@dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on besides the recordings."""

    epochs: int = 45
    patience: int = 25
    """Epochs without improvement after which a run ends."""
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    smoothing: float = 0.05
    """Label smoothing."""
    distillation: float = 2.0
    """Weight of the distance to the teacher's embedding."""
    threads: int = 1
    """Part of the recipe because sums are split among threads, so the last bits depend on their number."""
    seed: int = 0


def behind_image(encoder: Any, images: Tensor) -> Tensor:
    """Embeddings (n, d) of log-mel images (n, 1, mels, frames)."""
    for stage in encoder.stages[1:]:
        images = encoder.get_submodule(stage)(images)
    return images


class Student(nn.Module):
    """The part of an encoder after its log-mel image, a head, and the map to the teacher's embeddings."""

    def __init__(self, encoder: Any, classes: int, teacher_dim: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(encoder.embedding_dim, classes)
            self.to_teacher = nn.Linear(encoder.embedding_dim, max(1, teacher_dim))

    def embed(self, images: Tensor) -> Tensor:
        """Embed images: (n, 1, mels, frames) -> (n, d)."""
        return behind_image(self.encoder, images)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, classes), and embeddings mapped to the teacher's (n, teacher_dim)."""
        embeddings = self.embed(images)
        return SCALE * self.head(embeddings), self.to_teacher(embeddings)


@dataclass(frozen=True)
class Split:
    """Recordings to learn from and for early stopping, from folds that are not judged; they share no source."""

    train: Integers
    validation: Integers


def split(corpus: Corpus, seed: int) -> Split:
    """Split off about a tenth of each data set's recordings, by whole sources or speakers, for early stopping."""
    rng, held = np.random.default_rng((seed, 1)), np.zeros(len(corpus.labels), np.bool_)
    known = corpus.folds != HELD_OUT_FOLD
    for number in np.unique(corpus.sets):
        own = known & (corpus.sets == number)
        for group in rng.permutation(np.unique(corpus.groups[own])):
            if (own & held).sum() >= VALIDATION_SHARE * own.sum():
                break
            held |= own & (corpus.groups == group)
    return Split(np.flatnonzero(known & ~held), np.flatnonzero(known & held))


class Course:
    """A run in the folder `work`, which may have been started earlier."""

    def __init__(
        self, encoder: Any, corpus: Corpus, recipe: Recipe, work: Path, clock: Callable[[], float] = time.process_time
    ) -> None:
        """Raises UsageError when the folder holds a run with another recipe."""
        torch.set_num_threads(recipe.threads)
        self.corpus, self.recipe, self.split, self._clock = corpus, recipe, split(corpus, recipe.seed), clock
        self._front, self._file = encoder.front_end, work / "run.pt"
        student = Student(encoder, len(corpus.names), corpus.targets.shape[1], recipe.seed)
        self._student = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        standardise(encoder.input_norm, corpus, self.split.train)
        self._average = {name: value.clone() for name, value in self._student.state_dict().items()}
        self._optimizer = torch.optim.AdamW(_groups(self._student, recipe.weight_decay), lr=recipe.learning_rate)
        self.epoch, self.best_epoch, self.best_loss, self.seconds = 0, 0, math.inf, 0.0
        self.best = self._average
        if self._file.exists():
            self._restore()

    @property
    def done(self) -> bool:
        """Whether all epochs have run, or too many without improvement."""
        return self.epoch >= self.recipe.epochs or self.epoch - self.best_epoch >= self.recipe.patience

    def run(self, note: Callable[[str], None] = print, until: int | None = None) -> None:
        """Train up to epoch `until`, or to the end."""
        while not self.done and (until is None or self.epoch < until):
            began = self._clock()
            loss = self._train()
            scores, accuracy = self._validate()
            self.epoch += 1
            if scores < self.best_loss:
                self.best_epoch, self.best_loss = self.epoch, scores
                self.best = {name: value.clone() for name, value in self._average.items()}
            self.seconds += self._clock() - began
            self._save()
            shares = " ".join(f"{share:.3f}" for share in accuracy)
            note(f"epoch {self.epoch}: loss {loss:.3f}, held out {scores:.3f}, clips {shares}, {self.seconds:.0f} s")

    def _train(self) -> float:
        rng = np.random.default_rng((self.recipe.seed, 2, self.epoch))
        width = self._front.frames
        train = self.split.train
        # As many views of a recording as windows fit into it without overlap.
        order = rng.permutation(np.repeat(train, 1 + (self.corpus.lengths[train] - width) // width))
        batches = np.array_split(order, max(1, len(order) // self.recipe.batch))
        total = 0.0
        self._student.train()
        self._student.encoder.input_norm.eval()
        for number, recordings in enumerate(batches):
            for group in self._optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate * self._pace(self.epoch + number / len(batches))
            loss = self._loss(recordings, rng)
            self._optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self._student.parameters(), 5.0)
            self._optimizer.step()
            follow(self._average, self._student.state_dict(), self.epoch * len(batches) + number, AVERAGE_DECAY)
            total += loss.item()
        return total / len(batches)

    def _loss(self, recordings: Integers, rng: np.random.Generator) -> Tensor:
        batch = augmented(self.corpus, recordings, self._front.frames, rng)
        logits, imitated = self._student(by_channels(torch.from_numpy(batch.images)))
        loss = functional.cross_entropy(logits, torch.from_numpy(batch.classes), label_smoothing=self.recipe.smoothing)
        if batch.targets.shape[1] and self.recipe.distillation:
            alike = functional.cosine_similarity(imitated, torch.from_numpy(batch.targets))
            loss = loss + self.recipe.distillation * (1 - alike).mean()
        return loss

    def _pace(self, epoch: float) -> float:
        """Share of the learning rate: it rises, then follows half a cosine."""
        if epoch < _WARM_UP_EPOCHS:
            return (epoch + 0.1) / (_WARM_UP_EPOCHS + 0.1)
        over = (epoch - _WARM_UP_EPOCHS) / max(1, self.recipe.epochs - _WARM_UP_EPOCHS)
        return 0.5 + 0.5 * math.cos(math.pi * min(1.0, over))

    def _validate(self) -> tuple[float, list[float]]:
        """Log loss of the recordings' mean scores, averaged over the data sets, and the share right in each set."""
        logits, owners = self.logits(self._average, self.split.validation)
        scores = torch.from_numpy(mean_by_group(torch.softmax(logits, 1).numpy(), owners))
        kept = self.split.validation[np.unique(owners)]
        truth = torch.from_numpy(self.corpus.labels[kept])
        losses, right = [], []
        for number in np.unique(self.corpus.sets):
            own = torch.from_numpy(self.corpus.sets[kept] == number)
            losses.append(float(functional.nll_loss(scores[own].clamp(min=1e-9).log(), truth[own])))
            right.append(float((scores[own].argmax(1) == truth[own]).float().mean()))
        return float(np.mean(losses)), right

    def logits(self, state: dict[str, Tensor], recordings: Integers) -> tuple[Tensor, Integers]:
        """Logits (windows, classes) of recordings with given weights, and the index in `recordings` of each window."""
        hop = self._front.hop_samples // self._front.hop_length
        images, owners = windows(self.corpus, recordings, self._front.frames, hop)
        kept = {name: value.clone() for name, value in self._student.state_dict().items()}
        self._student.load_state_dict(state)
        self._student.eval()
        with torch.inference_mode():
            parts = [self._student(part.float())[0] for part in torch.from_numpy(images).split(_BATCH)]
        self._student.load_state_dict(kept)
        return torch.cat(parts), owners

    def _save(self) -> None:
        content = {
            "recipe": asdict(self.recipe),
            "student": self._student.state_dict(),
            "average": self._average,
            "best": self.best,
            "optimizer": self._optimizer.state_dict(),
            **{name: getattr(self, name) for name in ("epoch", "best_epoch", "best_loss", "seconds")},
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomic(self._file, buffer.getvalue())

    def _restore(self) -> None:
        content = torch.load(self._file, weights_only=True)
        if content["recipe"] != asdict(self.recipe):
            raise UsageError(f"{self._file}: begun with {content['recipe']}; remove it to begin again")
        self._student.load_state_dict(content["student"])
        self._optimizer.load_state_dict(content["optimizer"])
        self._average, self.best = content["average"], content["best"]
        for name in ("epoch", "best_epoch", "best_loss", "seconds"):
            setattr(self, name, content[name])


def follow(average: dict[str, Tensor], state: dict[str, Tensor], step: int, most: float) -> None:
    """Update the running mean of weights after a step: its decay is small at first and rises to `most`."""
    decay = min(most, (step + 1) / (step + 10))
    for name, value in state.items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)


def _groups(student: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups in which matrices have weight decay, and scales, shifts and biases have none."""
    matrices = [parameter for parameter in student.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in student.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def standardise(norm: nn.BatchNorm2d, corpus: Corpus, recordings: Integers) -> None:
    """Set the norm to the images' overall mean and deviation, which then stay fixed."""
    used = np.concatenate(
        [corpus.images[corpus.begins[one] : corpus.begins[one] + corpus.lengths[one]] for one in recordings]
    ).astype(np.float32)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.fill_(float(used.mean(dtype=np.float64)))
    norm.running_var.fill_(float(used.var(dtype=np.float64)))
