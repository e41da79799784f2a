"""Log-mel images of recordings from an encoder's front end, computed once and kept in a file.

Without padding, a window's image is a slice of the recording's image, so a random crop of the image equals the front
end's output for audio that begins elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from runtime_edge.audio import Counters, open_source
from runtime_edge.errors import UsageError
from runtime_server.labels.labelled import LabelledClip, read_clips
from streamsplit_compile.encoder.encoders import new_encoder, read_state

SETS = ("esc10", "speech_commands")
HELD_OUT_FOLD = 5
GATE_DB = -60.0
"""Windows below this are never embedded, as on a device."""
TARGET_HOP = 25
"""Frames from one window that the teacher embeds to the next."""
_BATCH = 32

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Corpus:
    """The concatenated images of recordings, with data on each recording."""

    images: npt.NDArray[np.float16]
    """(frames of all recordings, mels)."""
    loud: npt.NDArray[np.bool_]
    """(frames of all recordings,) whether a window that starts there is inside its recording and above the gate."""
    targets: npt.NDArray[np.float16]
    """(windows, d) the teacher's embeddings of every `TARGET_HOP`th window of each recording; d = 0 without teacher."""
    begins: Integers
    """(recordings,) index of each recording's first frame."""
    lengths: Integers
    """(recordings,) number of frames of each."""
    target_begins: Integers
    """(recordings,) index in `targets` of each recording's first window."""
    labels: Integers
    """(recordings,) indices in `names`."""
    sets: Integers
    """(recordings,) the data set that each belongs to."""
    folds: Integers
    groups: Integers
    """(recordings,) the source or speaker of each."""
    names: npt.NDArray[np.str_]
    """(classes,) names of the classes."""


def corpus_key(encoder: Any, tables: Sequence[Path], teacher: Path | None = None, most: int | None = None) -> str:
    """A digest of everything a corpus depends on, as 16 hexadecimal digits."""
    asked = [json.dumps(encoder.front_end.to_dict(), sort_keys=True), str(most), str(TARGET_HOP), str(GATE_DB)]
    digest = hashlib.sha256("\n".join(asked).encode())
    for path in [*tables, *([] if teacher is None else [teacher])]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def load_corpus(
    cache: Path, encoder: Any, tables: Sequence[Path], teacher: Path | None = None, most: int | None = None
) -> Corpus:
    """Load the recordings named in `tables` (`labels.csv` with filename, class, fold), from `cache` if it has them.

    `teacher` is an `mn` checkpoint of EfficientAT. At most `most` recordings of each class and fold are used. Raises
    FormatError or SourceError for files that cannot be read.
    """
    file = cache / f"corpus-{corpus_key(encoder, tables, teacher, most)}.npz"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        corpus = _read(encoder, tables, teacher, most)
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, **{field.name: getattr(corpus, field.name) for field in fields(corpus)})
        partial.replace(file)
    with np.load(file, allow_pickle=False) as stored:
        return Corpus(**{field.name: stored[field.name] for field in fields(Corpus)})


def few(clips: Sequence[LabelledClip], most: int | None) -> list[LabelledClip]:
    """The first `most` clips of each label and fold; all clips if `most` is None."""
    seen: dict[tuple[object, ...], int] = {}
    kept = []
    for clip in clips:
        place = (clip.labels, clip.fold)
        seen[place] = seen.get(place, 0) + 1
        if most is None or seen[place] <= most:
            kept.append(clip)
    return kept


def _read(encoder: Any, tables: Sequence[Path], teacher: Path | None, most: int | None) -> Corpus:
    clips = [few(read_clips(table), most) for table in tables]
    every = [clip for own in clips for clip in own]
    if any(clip.fold is None for clip in every):
        raise UsageError(f"{tables[0]}: no column fold")
    names = sorted({clip.labels[0] for clip in every})
    sources = sorted({f"{clip.path.parent.parent}/{_source(clip)}" for clip in every})
    front = encoder.front_end
    guide = None if teacher is None else _teacher(teacher)
    width = guide.embedding_dim if guide else 0
    images, loud, targets = [], [], []
    counters = Counters()
    for clip in every:
        blocks = open_source(str(clip.path), front.sample_rate, False, counters=counters)
        samples = np.concatenate([block.samples for block in blocks])
        samples = np.pad(samples, (0, max(0, front.window_samples - len(samples))))
        with torch.inference_mode():
            image = encoder.log_mel(torch.from_numpy(samples)[None])[0, 0].T.half().numpy()
        images.append(image)
        loud.append(_loud(samples, front, len(image)))
        count = 1 + (len(image) - front.frames) // TARGET_HOP
        asked = np.stack([samples[start:][: front.window_samples] for start in _starts(count, front.hop_length)])
        known = guide is not None and clip.fold != HELD_OUT_FOLD
        targets.append(_embedded(guide, asked) if known else np.zeros((count, width), np.float16))
    lengths, counts = np.array([len(one) for one in images]), np.array([len(one) for one in targets])
    return Corpus(
        np.concatenate(images),
        np.concatenate(loud),
        np.concatenate(targets),
        np.cumsum(lengths) - lengths,
        lengths,
        np.cumsum(counts) - counts,
        np.array([names.index(clip.labels[0]) for clip in every]),
        np.repeat(np.arange(len(clips)), [len(own) for own in clips]),
        np.array([clip.fold for clip in every], np.int64),
        np.array([sources.index(f"{clip.path.parent.parent}/{_source(clip)}") for clip in every]),
        np.array(names),
    )


def _source(clip: LabelledClip) -> str:
    """A clip's source or speaker: file names of both data sets are `<source or speaker>-<take>`."""
    return clip.path.stem.rpartition("-")[0]


def _starts(count: int, hop_length: int) -> range:
    return range(0, count * TARGET_HOP * hop_length, TARGET_HOP * hop_length)


def _loud(samples: Floats, front: Any, frames: int) -> npt.NDArray[np.bool_]:
    """Whether the window that starts at each frame is inside the recording and above the gate, (frames,)."""
    starts = np.arange(frames) * front.hop_length
    inside = starts + front.window_samples <= len(samples)
    sums = np.concatenate([[0.0], np.cumsum(samples, dtype=np.float64)])
    squares = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    first, last = starts[inside], starts[inside] + front.window_samples
    mean = (sums[last] - sums[first]) / front.window_samples
    power = (squares[last] - squares[first]) / front.window_samples - mean**2
    inside[inside] = power >= 10 ** (GATE_DB / 10)
    return np.asarray(inside)


def _teacher(path: Path) -> Any:
    module, _ = new_encoder("mn")
    module.load_state_dict(read_state(path))
    return module


def _embedded(module: Any, windows: Floats) -> npt.NDArray[np.float16]:
    with torch.inference_mode():
        parts = [module(part) for part in torch.from_numpy(windows).split(_BATCH)]
        return np.asarray(torch.cat(parts).half().numpy())
