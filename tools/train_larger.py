"""Teaches EfficientAT's `mn04` the classes of the reference encoder, so that it can help a server (docs/cascade.md).

    python -m tools.train_larger --audio recordings/ --checkpoint mn04_as_mAP_432.pt -o larger.pt [--seed 0]
    ssc server run encoder.pt bundle/ --larger larger.pt --calibrate recordings/ --larger-head larger.head.json

`recordings/esc10/labels.csv` and `recordings/speech_commands/labels.csv` name the recordings with class and fold; folds
1 to 4 are learnt from. Training starts from AudioSet's weights and changes all of them. Windows of 1 s begin anywhere,
half of them have gone through Opus, and they are mixed with others and masked. `larger.head.json` is a head fitted to
one window of each of these recordings. The same recordings, seed and machine give the same bytes; it takes about 6
minutes on one core.
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
from torch import Tensor, nn
from torch.nn import functional

from runtime_edge.audio import Counters, open_source
from runtime_edge.audio.opus import OpusDecoder, OpusEncoder
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.formats.records.head import Head, write_head
from runtime_server.labels.head_training import fit_head
from runtime_server.labels.labelled import Examples, read_clips, windows_of
from runtime_server.suffix.larger_encoder import in_batches, whole
from streamsplit_compile.encoder.encoders import LoadedEncoder, load_encoder, new_encoder, read_state, save_checkpoint
from tools.judged_clips import split_clips
from tools.reference.corpus import GATE_DB, HELD_OUT_FOLD, SETS
from tools.reference.crops import MAX_MASKED_BANDS, MAX_MASKED_FRAMES, MIX_ALPHA
from tools.reference.training import behind_image, follow

ENCODER, CONFIG = "mn", {"width_mult": 0.4}
BATCH, SCALE, SMOOTHING, KBPS = 64, 16.0, 0.05, 16.0
RATES = (5e-4, 3e-3)
"""Learning rates of the encoder and of the layer behind it, which is discarded."""
MAX_GAIN_DB, MAX_SHIFT_S = 8.0, 0.1
_QUIET = 1e-6
"""Mean square below which windows are not used."""
_AVERAGE_DECAY, _WARM_UP_STEPS = 0.99, 50
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recordings:
    """The samples of recordings, (n,) each, and their classes."""

    samples: list[Floats]
    coded: list[Floats]
    """The same samples after Opus."""
    classes: npt.NDArray[np.int64]
    names: tuple[str, ...]


def read_recordings(audio: Path, rate: int, window: int) -> Recordings:
    """Read the recordings of folds 1 to 4 that are at least a window long. Raises FormatError or SourceError."""
    clips = [clip for name in SETS for clip in read_clips(audio / name / "labels.csv") if clip.fold != HELD_OUT_FOLD]
    names, counters = tuple(sorted({clip.labels[0] for clip in clips})), Counters()
    found = []
    for clip in clips:
        blocks = open_source(str(clip.path), rate, counters=counters)
        samples = np.concatenate([block.samples for block in blocks])
        found.append(np.pad(samples, (0, max(0, window - len(samples)))))
    coded = [_through_opus(samples, rate) for samples in found]
    return Recordings(found, coded, np.array([names.index(clip.labels[0]) for clip in clips]), names)


def _through_opus(samples: Floats, rate: int) -> Floats:
    """Code and decode samples, (n,) -> (n,), as a new stream in pieces of a second."""
    encoder, decoder = OpusEncoder(rate, KBPS), OpusDecoder(rate)
    padded = np.pad(samples, (0, -len(samples) % rate)).reshape(-1, rate)
    return np.concatenate([decoder.decode(encoder.encode(piece), rate) for piece in padded])[: len(samples)]


def batch_of(
    recordings: Recordings, chosen: npt.NDArray[np.int64], rate: int, window: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Windows (n, window) of recordings, each mixed with another, and their classes (n, classes)."""
    sources = [recordings.coded if coded else recordings.samples for coded in rng.random(len(chosen)) < 0.5]
    windows = np.stack([_crop(source[one], rate, window, rng) for source, one in zip(sources, chosen, strict=True)])
    windows *= 10 ** (rng.uniform(-MAX_GAIN_DB, MAX_GAIN_DB, (len(chosen), 1)) / 20)
    share, other = rng.beta(MIX_ALPHA, MIX_ALPHA, (len(chosen), 1)), rng.permutation(len(chosen))
    share = np.maximum(share, 1 - share)
    classes = np.eye(len(recordings.names))[recordings.classes[chosen]]
    mixed = np.sqrt(share) * windows + np.sqrt(1 - share) * windows[other]
    return (
        torch.from_numpy(mixed.astype(np.float32)),
        torch.from_numpy((share * classes + (1 - share) * classes[other]).astype(np.float32)),
    )


def _crop(samples: Floats, rate: int, window: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A window that begins anywhere and is not silent, if a few tries find one."""
    for _ in range(5):
        start = rng.integers(0, len(samples) - window + 1)
        found = samples[start : start + window].astype(np.float64)
        if len(samples) == window:
            found = np.roll(found, rng.integers(-round(MAX_SHIFT_S * rate), round(MAX_SHIFT_S * rate) + 1))
        if np.mean(found**2) > _QUIET:
            break
    return found


def _masked(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Images (n, 1, mels, frames), with some bands and frames of each set to its mean (SpecAugment)."""
    for image in images:
        for axis, most in ((1, MAX_MASKED_BANDS), (2, MAX_MASKED_FRAMES)):
            size = int(rng.integers(0, most + 1))
            image.narrow(axis, int(rng.integers(0, image.shape[axis] - size + 1)), size).fill_(float(image.mean()))
    return images


def train(encoder: Any, recordings: Recordings, epochs: int, seed: int, batch: int = BATCH) -> None:
    """Train an encoder in place; it ends as the running mean of its weights."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    head = nn.Linear(encoder.embedding_dim, len(recordings.names))
    groups = [{"params": part.parameters(), "lr": rate} for part, rate in zip((encoder, head), RATES, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    average = {name: value.clone() for name, value in encoder.state_dict().items()}
    window, rate = encoder.window_samples, encoder.sample_rate
    # Long recordings are used several times an epoch, each time at another position.
    every = np.repeat(
        np.arange(len(recordings.samples)), [1 + (len(one) > 2 * window) * 3 for one in recordings.samples]
    )
    steps = len(every) // batch
    encoder.train()
    for epoch in range(epochs):
        order, total = rng.permutation(every), 0.0
        for number in range(steps):
            step = epoch * steps + number
            pace = min(1.0, (step + 1) / _WARM_UP_STEPS) * (0.5 + 0.5 * np.cos(np.pi * step / (epochs * steps)))
            for group, most in zip(optimizer.param_groups, RATES, strict=True):
                group["lr"] = most * pace
            windows, classes = batch_of(recordings, order[number * batch :][:batch], rate, window, rng)
            with torch.no_grad():
                images = _masked(encoder.log_mel(windows), rng)
            logits = SCALE * head(behind_image(encoder, images))
            loss = functional.cross_entropy(logits, classes, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(encoder.parameters(), 5.0)
            optimizer.step()
            total += loss.item()
            follow(average, encoder.state_dict(), step, _AVERAGE_DECAY)
        print(f"epoch {epoch + 1} of {epochs}: loss {total / steps:.3f}", flush=True)
    encoder.load_state_dict(average)
    encoder.eval()


def front_end_of(encoder: LoadedEncoder) -> FrontEndInfo:
    """Windows that begin half of one apart."""
    size = encoder.window_samples
    return FrontEndInfo(sample_rate=encoder.sample_rate, window_samples=size, hop_samples=size // 2, details={})


def head_of(encoder: LoadedEncoder, heard: Examples) -> Head:
    """A head for an encoder's embeddings, fitted to labelled windows (n, samples)."""
    embeddings = in_batches(whole(encoder.graph), torch.from_numpy(heard.embeddings)).numpy()
    return fit_head(replace(heard, embeddings=embeddings, generations=(1, 1)), encoder.id, "tools.train_larger")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True, help="mn04_as_mAP_432.pt of EfficientAT's releases.")
    parser.add_argument("-o", "--out", type=Path, required=True, help="Checkpoint to write.")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    encoder, config = new_encoder(ENCODER, CONFIG)
    module: Any = encoder
    module.load_state_dict(read_state(given.checkpoint))
    train(module, read_recordings(given.audio, module.sample_rate, module.window_samples), given.epochs, given.seed)
    save_checkpoint(ENCODER, config, module, given.out)
    made = load_encoder(given.out)
    heard = windows_of(split_clips(given.audio)[1], front_end_of(made), 1, GATE_DB)
    write_head(given.out.with_suffix(".head.json"), head_of(made, heard))


if __name__ == "__main__":
    main()
