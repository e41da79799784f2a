"""Trains the encoder that a server would start from if it had 30 % of the recordings: the others are heard by devices.

    corpus, server = shared_out(audio, cache)
    encoder, head = train(corpus, server, epochs=30)

Whole speakers, and whole sources of sounds, are the server's or the devices' (docs/method.md, section 10: 30 % of the
data as a proxy on the server). Training starts from chance. The same recordings, seed and machine give the same bytes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from streamsplit_compile.encoder.encoders import new_encoder
from tools.reference.corpus import SETS, Corpus, Integers, load_corpus
from tools.reference.crops import augmented
from tools.reference.training import SCALE, behind_image, follow, standardise

ENCODER = "mobilenet_v3_small"
SERVERS_SHARE = 0.3
BATCH, RATE, DECAY, SMOOTHING = 32, 2e-3, 0.02, 0.05
_AVERAGE_DECAY, _WARM_UP = 0.99, 50


def shared_out(audio: Path, cache: Path, seed: int = 0) -> tuple[Corpus, Integers]:
    """All recordings, as images in `cache`, and which of them are the server's. Raises FormatError or SourceError."""
    corpus = load_corpus(cache, new_encoder(ENCODER)[0], [audio / name / "labels.csv" for name in SETS])
    random, taken = np.random.default_rng(seed), np.zeros(len(corpus.labels), np.bool_)
    for number in np.unique(corpus.sets):
        own = corpus.sets == number
        for group in random.permutation(np.unique(corpus.groups[own])):
            if (own & taken).sum() >= SERVERS_SHARE * own.sum():
                break
            taken |= own & (corpus.groups == group)
    return corpus, np.flatnonzero(taken)


def train(corpus: Corpus, recordings: Integers, epochs: int, seed: int = 0) -> tuple[Any, nn.Linear]:
    """An encoder and the head on its embeddings (logits are `SCALE` times the head's), in eval mode.

    Each epoch hears one window of each recording, shifted, mixed and masked; the running mean of the weights is kept.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    encoder: Any = new_encoder(ENCODER, {"seed": seed})[0]
    student = nn.ModuleList([encoder, nn.Linear(encoder.embedding_dim, len(corpus.names))])
    optimiser = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=DECAY)
    average = {name: value.clone() for name, value in student.state_dict().items()}
    standardise(encoder.input_norm, corpus, recordings)
    each, step = len(recordings) // BATCH, 0
    student.train()
    for epoch in range(epochs):
        order, total = random.permutation(recordings), 0.0
        for number in range(each):
            pace = min(1.0, (step + 1) / _WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / (epochs * each)))
            optimiser.param_groups[0]["lr"] = RATE * pace
            batch = augmented(corpus, order[number * BATCH :][:BATCH], encoder.front_end.frames, random)
            logits = SCALE * student[1](behind_image(encoder, torch.from_numpy(batch.images)))
            loss = functional.cross_entropy(logits, torch.from_numpy(batch.classes), label_smoothing=SMOOTHING)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 5.0)
            optimiser.step()
            follow(average, student.state_dict(), step, _AVERAGE_DECAY)
            total, step = total + loss.item(), step + 1
        print(f"epoch {epoch + 1} of {epochs}: loss {total / each:.3f}", flush=True)
    student.load_state_dict(average)
    student.eval()
    return encoder, student[1]  # type: ignore[return-value]
