"""What learning from sparse activations is worth: real recordings streamed to the server's trainer, and a linear probe.

Four devices play the recordings of folds 1 to 4, without labels and each in an order of its own. A device keeps a
share of its windows and ships each at a random cut, encoded as on the wire; the server's own trainer learns from them,
and after every pass over the recordings the devices move to the averaged weights.

    python -m tools.learning encoder.pt --audio recordings/ [--room 1] [--terms hybrid,task] [--passes 6] [--raw]

`recordings/esc10/labels.csv` names the recordings. What comes out moves by several points from pass to pass: one fold
has 80 recordings.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from runtime_edge.bundle import Bundle
from runtime_edge.codec import CutCodec
from runtime_server.buffer import Window
from runtime_server.generations import CutModel, cut_model
from runtime_server.losses import HybridConfig
from runtime_server.trainer import TrainConfig, Trainer
from streamsplit_compile.compiler import CompileOptions, compile_encoder
from streamsplit_compile.encoders import Encoder, load_encoder
from streamsplit_compile.segment import run_segments
from streamsplit_compile.targets import load_target
from tools.esc10 import Array, Clips, load_clips, probe_accuracy
from tools.room import Room

TERMS = {
    "hybrid": HybridConfig(),
    "task": HybridConfig(spread=None, laplacian=False),
    "task+sw": HybridConfig(laplacian=False),
    "task+laplacian": HybridConfig(spread=None),
    "task+mse": HybridConfig(spread="mse", laplacian=False),
    "task+kl": HybridConfig(spread="kl", laplacian=False),
    "task+mmd": HybridConfig(spread="mmd", laplacian=False),
}
"""The objective and its parts, as far as one can be switched off."""
DEVICES = 4
HELD_OUT_FOLD = 5
_CHUNK = 36
"""Window positions of each device between two rounds of training steps: four recordings."""


@dataclass(frozen=True)
class Learning:
    """One run: what arrives and how it is learnt from."""

    loss: HybridConfig = field(default_factory=HybridConfig)
    kept_share: float = 0.25
    """Share of the windows that reach the server."""
    raw: bool = False
    """Ship raw audio instead of activations at mixed cuts."""
    passes: int = 6
    steps_per_chunk: int = 3
    batch: int = 32
    learning_rate: float = 1e-4
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What one run gave."""

    accuracies: tuple[float, ...]
    """Linear probe on the held-out fold: before, and after each pass."""
    steps: int
    windows: int


def learn(
    encoder: Encoder, bundle: Bundle, clips: Clips, run: Learning, note: Callable[[str], None] = print
) -> Outcome:
    """Stream, train and probe. The bundle says where the encoder is cut and how its activations are encoded."""
    info = bundle.manifest.info
    config = TrainConfig(
        batch=run.batch, learning_rate=run.learning_rate, loss=run.loss, seed=run.seed, min_windows=2 * run.batch
    )
    tensors = {name: value.copy() for name, value in encoder.tensors.items()}
    released = cut_model(encoder.graph, bundle, tensors)
    trainer = Trainer(cut_model(encoder.graph, bundle, tensors), config, encoder.embedding_dim)
    uplink = _Uplink(bundle, run)
    hop = info.front_end.hop_samples
    recordings = clips.select(clips.folds != HELD_OUT_FOLD).windows(encoder.window_samples, hop)
    accuracies = [probe_accuracy(embed(released, clips, encoder.window_samples, hop), clips, HELD_OUT_FOLD)]
    generation, windows = 1, 0
    for number in range(run.passes):
        for chunk in _pass(recordings, number, run):
            for window in uplink.ship(released, generation, chunk):
                trainer.take(window)
                windows += 1
            if trainer.ready:
                for _ in range(run.steps_per_chunk):
                    trainer.step()
        released, generation = cut_model(encoder.graph, bundle, trainer.averaged_tensors()), generation + 1
        embeddings = embed(released, clips, encoder.window_samples, hop)
        accuracies.append(probe_accuracy(embeddings, clips, HELD_OUT_FOLD))
        losses = trainer.history[-1].losses if trainer.history else {}
        note(f"  pass {number + 1}: {accuracies[-1]:.4f} after {trainer.steps} steps {losses}")
    return Outcome(tuple(accuracies), trainer.steps, windows)


def embed(model: CutModel, clips: Clips, samples: int, hop: int) -> Array:
    """Mean embedding (clips, d) of each recording's windows."""
    windows = clips.windows(samples, hop)
    rows = []
    with torch.inference_mode():
        for clip in windows:
            rows.append(run_segments(model.segments, torch.from_numpy(clip.copy())).mean(0).numpy())
    return np.stack(rows)


@dataclass(frozen=True)
class _Heard:
    """A window of one device, before anything has run."""

    device: int
    index: int
    samples: Array


def _pass(recordings: Array, number: int, run: Learning) -> Iterator[list[_Heard]]:
    """Every recording once, a few at a time; what is not kept has never been sent."""
    rng = np.random.default_rng((run.seed, number))
    order = rng.permutation(len(recordings))
    per_clip = recordings.shape[1]
    shares = np.array_split(order, DEVICES)
    longest = max(map(len, shares)) * per_clip
    for start in range(0, longest, _CHUNK):
        chunk = []
        for device, share in enumerate(shares):
            for position in range(start, min(start + _CHUNK, len(share) * per_clip)):
                if rng.random() < run.kept_share:
                    clip, place = divmod(position, per_clip)
                    chunk.append(_Heard(device, number * longest + position, recordings[share[clip], place]))
        yield chunk


class _Uplink:
    """Prefix, encoding and decoding: a device's half in torch, which the compiler proves to be the same numbers."""

    def __init__(self, bundle: Bundle, run: Learning) -> None:
        cuts = bundle.manifest.info.cuts
        # The embedding trains nothing, so the last cut is left out.
        self._cuts = [0] if run.raw else list(range(len(cuts) - 1))
        self._codecs = {cut: CutCodec(cuts[cut], "int8" if cut else "pcm16") for cut in self._cuts}
        self._rng = np.random.default_rng((run.seed, 99))

    def ship(self, model: CutModel, generation: int, heard: list[_Heard]) -> Iterator[Window]:
        """The windows as the server takes them, with the embeddings that it makes of them."""
        drawn = self._rng.choice(self._cuts, len(heard))
        for cut in self._cuts:
            members = [window for window, chosen in zip(heard, drawn, strict=True) if chosen == cut]
            if not members:
                continue
            with torch.inference_mode():
                samples = torch.from_numpy(np.stack([window.samples for window in members]))
                activations = run_segments(model.segments[:cut], samples).numpy()
                codec = self._codecs[cut]
                rows = activations.shape[0] // len(members)
                received = np.concatenate(
                    [codec.decode(*codec.encode(part)) for part in np.split(activations, len(members))]
                )
                embeddings = run_segments(model.segments[cut:], torch.from_numpy(received))
            for place, window in enumerate(members):
                yield Window(
                    device=f"device-{window.device}",
                    boot="a",
                    index=window.index,
                    generation=generation,
                    cut=cut,
                    activation=torch.from_numpy(received[place * rows : (place + 1) * rows]).clone(),
                    embedding=embeddings[place].clone(),
                )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--room", type=int, help="Seed of another room and microphone to hear everything through.")
    parser.add_argument("--terms", default="hybrid", help=f"Some of {', '.join(TERMS)}.")
    parser.add_argument("--passes", type=int, default=Learning.passes)
    parser.add_argument("--learning-rate", type=float, default=Learning.learning_rate)
    parser.add_argument("--kept-share", type=float, default=Learning.kept_share)
    parser.add_argument("--raw", action="store_true", help="Ship raw audio instead of activations at mixed cuts.")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    clips, encoder = load_clips(given.audio), load_encoder(given.encoder)
    if given.room is not None:
        clips = clips.heard_through(Room(given.room).hear)
    with tempfile.TemporaryDirectory() as work:
        options = CompileOptions(targets=[load_target("rpi4")], calibrate=given.audio)
        bundle = compile_encoder(encoder, options, Path(work) / "bundle")
        for term in given.terms.split(","):
            run = Learning(
                TERMS[term], given.kept_share, given.raw, given.passes,
                learning_rate=given.learning_rate, seed=given.seed,
            )  # fmt: skip
            outcome = learn(encoder, bundle, clips, run)
            told = " ".join(f"{accuracy:.4f}" for accuracy in outcome.accuracies)
            print(f"{term}: {told} ({outcome.windows} windows, {outcome.steps} steps)")


if __name__ == "__main__":
    main()
