"""Random views of images: crops in time, gain and tilt, mixtures, masks. numpy in, numpy out, seeded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tools.reference.corpus import TARGET_HOP, Corpus, Floats, Integers

MAX_SHIFT = 12
"""The most frames by which a recording of a single window is shifted; the gap is filled by reflection."""
MAX_GAIN = 1.5
"""The most gain in the logarithm of power, up or down: 6.5 dB."""
MAX_TILT = 1.0
"""The most tilt in the logarithm of power between the lowest and the highest band, up or down."""
MIX_ALPHA = 0.3
MASKS, MAX_MASKED_BANDS, MAX_MASKED_FRAMES = 2, 16, 14


@dataclass(frozen=True)
class Batch:
    """A batch of views to learn from."""

    images: Floats
    """(views, 1, mels, frames)."""
    classes: Floats
    """(views, classes); each row adds up to 1."""
    targets: Floats
    """(views, d) the teacher's embeddings."""


def crops(corpus: Corpus, recordings: Integers, width: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A random window (n, width, mels) of each recording, and the teacher's embedding (n, d) of the nearest window."""
    starts = np.empty(len(recordings), np.int64)
    for place, recording in enumerate(recordings):
        begin = corpus.begins[recording]
        (loud,) = np.nonzero(corpus.loud[begin : begin + corpus.lengths[recording]])
        starts[place] = rng.choice(loud) if len(loud) else 0
    targets = corpus.targets[corpus.target_begins[recordings] + (starts + TARGET_HOP // 2) // TARGET_HOP]
    last = corpus.lengths[recordings] - 1
    single = last < width
    shift = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, len(recordings))
    frames = np.abs((starts + np.where(single, shift, 0))[:, None] + np.arange(width))
    frames = last[:, None] - np.abs(last[:, None] - frames)
    return corpus.images[corpus.begins[recordings][:, None] + frames].astype(np.float32), targets.astype(np.float32)


def augmented(corpus: Corpus, recordings: Integers, width: int, rng: np.random.Generator) -> Batch:
    """Views of recordings, each masked and mixed with another of the batch by adding power, as sounds mix."""
    images, targets = crops(corpus, recordings, width, rng)
    count, _, mels = images.shape
    images = images + rng.uniform(-MAX_GAIN, MAX_GAIN, (count, 1, 1)).astype(np.float32)
    tilt = rng.uniform(-MAX_TILT, MAX_TILT, (count, 1, 1)) * np.linspace(-0.5, 0.5, mels)
    images = images + tilt.astype(np.float32)
    classes = np.eye(len(corpus.names), dtype=np.float32)[corpus.labels[recordings]]
    share = rng.beta(MIX_ALPHA, MIX_ALPHA, count).astype(np.float32)
    share, other = np.maximum(share, 1 - share), rng.permutation(count)
    own, mixed_in = np.log(share)[:, None, None], np.log(np.maximum(1 - share, 1e-8))[:, None, None]
    images = np.logaddexp(images + own, images[other] + mixed_in)
    _mask(images, rng)
    return Batch(
        np.ascontiguousarray(images.transpose(0, 2, 1)[:, None], np.float32),
        _mixed(classes, share, other),
        _mixed(targets, share, other),
    )


def windows(corpus: Corpus, recordings: Integers, width: int, hop: int) -> tuple[npt.NDArray[np.float16], Integers]:
    """All windows (n, 1, mels, width) above the gate, `hop` frames apart, and the index in `recordings` of each."""
    found, owners = [], []
    for place, recording in enumerate(recordings):
        begin = corpus.begins[recording]
        for start in range(begin, begin + corpus.lengths[recording] - width + 1, hop):
            if corpus.loud[start]:
                found.append(corpus.images[start : start + width].T[None])
                owners.append(place)
    return np.stack(found), np.array(owners)


def _mixed(rows: Floats, share: Floats, other: Integers) -> Floats:
    return np.asarray(share[:, None] * rows + (1 - share[:, None]) * rows[other], np.float32)


def _mask(images: Floats, rng: np.random.Generator) -> None:
    """Set some bands and frames of each image (frames, mels) to its mean (SpecAugment)."""
    for image in images:
        mean = image.mean()
        for _ in range(MASKS):
            for axis, most in ((0, MAX_MASKED_FRAMES), (1, MAX_MASKED_BANDS)):
                size = rng.integers(0, most + 1)
                start = rng.integers(0, image.shape[axis] - size + 1)
                image[(slice(None),) * axis + (slice(start, start + size),)] = mean
