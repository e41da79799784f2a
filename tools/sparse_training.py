"""Measures learning from sparse activations with a linear probe: real recordings are streamed to the server's trainer.

Four devices play the recordings of folds 1 to 4 without labels, each in its own order. A device keeps a share of its
windows and ships each at a random cut, encoded as on the wire; the server's own trainer learns from them, and after
every pass over the recordings the devices switch to the averaged weights.

    python -m tools.sparse_training encoder.pt --audio recordings/ [--room 1] [--terms hybrid,task] [--passes 4] [--raw]

`--objective moco` trains with another objective.

`recordings/esc10/labels.csv` names the recordings. `tools.bench_learning` runs this for the benchmark's two starts.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.codec import CutCodec
from runtime_server.suffix.generations import CutModel, cut_model
from runtime_server.training.augment import AugmentConfig
from runtime_server.training.buffer import TrainingWindow
from runtime_server.training.losses import LOSSES, HybridConfig
from runtime_server.training.losses.objectives import OBJECTIVES
from runtime_server.training.objective import first_trainable
from runtime_server.training.trainer import TrainConfig, Trainer
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import LoadedEncoder, load_encoder
from streamsplit_compile.encoder.segment import by_channels, run_segments
from tools.clip_probe import Probed, probe
from tools.esc10 import Clips, load_clips
from tools.room import Room

HYBRID, _USUAL = LOSSES["hybrid"], TrainConfig().augment
STRONG = 5.0
"""A weight at which both terms contribute much to a step (`tools.term_gradients`), unlike at the published weights."""
TERMS = {
    "hybrid": HYBRID,
    "task": LOSSES["task"],
    "sw": replace(HYBRID, task=False, laplacian=False),
    "laplacian": replace(HYBRID, task=False, spread=None),
    "task+sw": replace(HYBRID, laplacian=False),
    "task+laplacian": replace(HYBRID, spread=None),
    "task+mse": replace(HYBRID, spread="mse", laplacian=False),
    "task+kl": replace(HYBRID, spread="kl", laplacian=False),
    "task+mmd": replace(HYBRID, spread="mmd", laplacian=False),
    "strong hybrid": replace(HYBRID, lambda1=STRONG, lambda2=STRONG),
    "strong task+sw": replace(HYBRID, lambda1=STRONG, laplacian=False),
    "strong task+laplacian": replace(HYBRID, spread=None, lambda2=STRONG),
    "task at 0.2": replace(LOSSES["task"], temperature=0.2),
}
"""The hybrid loss, its terms alone, the task with one other term (as in the paper's comparison), and other settings."""
DEVICES = 4
HELD_OUT_FOLD = 5
CUTS = "6"
"""The number of blocks that the encoder is cut into, so that there are early, middle and late cuts."""
_CHUNK = 36
"""Windows of each device between two rounds of training steps: those of four recordings."""


@dataclass(frozen=True)
class TrainingRun:
    """The settings of one run: which windows arrive, and how training uses them."""

    loss: HybridConfig = TrainConfig.loss
    objective: str = TrainConfig.objective
    kept_share: float = 0.25
    """Share of the windows that reach the server."""
    raw: bool = False
    """Ship raw audio instead of activations at mixed cuts."""
    pause: int = 0
    """Windows of silence on a device between two recordings. From `NEARBY` on, windows of two recordings are never
    taken for the same sound."""
    passes: int = 4
    steps_per_chunk: int = 3
    batch: int = 64
    learning_rate: float = TrainConfig.learning_rate
    augment: AugmentConfig = _USUAL
    seed: int = 0


@dataclass(frozen=True)
class Stage:
    """An encoder cut as in its bundle, and the recordings as inputs of the first trainable block.

    The blocks before it, such as a front end, are the same in every generation and wherever they run. They run only
    once, and raw audio (16-bit PCM) is given to the trainer after them.
    """

    encoder: LoadedEncoder
    bundle: Bundle
    clips: Clips
    fronts: torch.Tensor
    """(clips, windows, *shape) float16 at cut `first`."""
    first: int

    @property
    def start(self) -> CutModel:
        """The encoder before it has learnt anything."""
        return cut_model(self.encoder.graph, self.bundle, self.encoder.tensors)

    def embedded(self, model: CutModel) -> npt.NDArray[np.float32]:
        """A model's embeddings (clips, windows, d) of all recordings."""
        flat, rows = self.fronts.flatten(0, 1), []
        with torch.inference_mode():
            for part in flat.split(128):
                rows.append(run_segments(model.segments[self.first :], by_channels(part.float())))
        return np.asarray(torch.cat(rows).unflatten(0, self.fronts.shape[:2]).numpy())

    def judged(self, model: CutModel) -> Probed:
        """The results of a linear probe on a model's embeddings."""
        return probe(self.embedded(model), self.clips.labels, self.clips.folds, HELD_OUT_FOLD)


def compiled(encoder: LoadedEncoder, calibrate: Path, work: Path) -> Bundle:
    """The encoder compiled below `work` with early, middle and late cuts, unless it is there already."""
    options = CompileOptions(targets=[load_target("rpi4")], calibrate=calibrate, cuts=CUTS)
    made = work / "bundle"
    return open_bundle(made) if made.exists() else compile_encoder(encoder, options, made)


def stage(encoder: LoadedEncoder, clips: Clips, calibrate: Path, work: Path) -> Stage:
    """Run the blocks that never change, of an encoder that is compiled below `work`."""
    bundle = compiled(encoder, calibrate, work)
    model = cut_model(encoder.graph, bundle, encoder.tensors)
    first = first_trainable(model.segments)
    fronts = []
    with torch.inference_mode():
        for clip in clips.windows(encoder.window_samples, bundle.manifest.info.front_end.hop_samples):
            pcm = torch.from_numpy(np.round(clip * 32767.0).clip(-32768, 32767) / np.float32(32767.0))
            fronts.append(run_segments(model.segments[:first], pcm).half())
    return Stage(encoder, bundle, clips, torch.stack(fronts), first)


@dataclass(frozen=True)
class TrainingResult:
    """The result of one run."""

    before: Probed
    after: Probed
    steps: int
    windows: int
    received_bytes: int
    """Bytes of the windows' payloads, without headers; 0 for raw audio."""


def learn(
    staged: Stage,
    run: TrainingRun,
    before: Probed | None = None,
    note: Callable[[str], None] = print,
    around_step: Callable[[], AbstractContextManager[None]] = nullcontext,
    after_pass: Callable[[CutModel], None] = lambda _: None,
) -> TrainingResult:
    """Run `train`, with a linear probe before and after."""
    before = before or staged.judged(staged.start)
    trained = train(staged, run, around_step, after_pass)
    after = staged.judged(trained.model)
    note(f"  {after}  ({trained.windows} windows, {trained.steps} steps)")
    return TrainingResult(before, after, trained.steps, trained.windows, trained.received_bytes)


@dataclass(frozen=True)
class Trained:
    """The averaged weights at the end, and the effort to get them."""

    model: CutModel
    steps: int
    windows: int
    received_bytes: int


def train(
    staged: Stage,
    run: TrainingRun,
    around_step: Callable[[], AbstractContextManager[None]] = nullcontext,
    after_pass: Callable[[CutModel], None] = lambda _: None,
    before_steps: Callable[[Trainer], None] = lambda _: None,
) -> Trained:
    """Stream and train; `after_pass` gets the averaged weights after every pass over the recordings.

    `before_steps` gets the trainer every time that it has new windows.
    """
    released, config = (
        staged.start,
        TrainConfig(
            batch=run.batch,
            learning_rate=run.learning_rate,
            loss=run.loss,
            objective=run.objective,
            augment=run.augment,
            seed=run.seed,
            min_windows=run.batch,
            horizon=TrainConfig.horizon * (staged.fronts.shape[1] + run.pause) // staged.fronts.shape[1],
        ),
    )
    trainer = Trainer(staged.start, config, staged.encoder.embedding_dim)
    uplink = _TorchPrefix(staged, run)
    recordings = staged.fronts[torch.from_numpy(staged.clips.folds != HELD_OUT_FOLD)]
    windows = 0
    for number in range(run.passes):
        for chunk in _pass(recordings, number, run):
            for window in uplink.ship(released, number + 1, chunk):
                trainer.add(window)
                windows += 1
            if trainer.ready:
                before_steps(trainer)
                for _ in range(run.steps_per_chunk):
                    with around_step():
                        trainer.step()
        released = cut_model(staged.encoder.graph, staged.bundle, trainer.averaged_tensors())
        after_pass(released)
    return Trained(released, trainer.steps, windows, uplink.sent_bytes)


@dataclass(frozen=True)
class _FrontWindow:
    """A window of one device, before any trainable block has run."""

    device: int
    index: int
    front: torch.Tensor


def _pass(recordings: torch.Tensor, number: int, run: TrainingRun) -> Iterator[list[_FrontWindow]]:
    """Yields the windows of every recording once, a few recordings at a time; only kept windows are sent."""
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
                    index = number * longest + position
                    index += run.pause * (index // per_clip)
                    chunk.append(_FrontWindow(device, index, recordings[share[clip], place]))
        yield chunk


class _TorchPrefix:
    """A device's half (prefix, encoding, decoding) in torch; the compiler checks that the results are the same."""

    def __init__(self, staged: Stage, run: TrainingRun) -> None:
        cuts = staged.bundle.manifest.info.cuts
        self._first = staged.first
        # The embedding trains nothing, so the last cut is left out.
        self._cuts = [0] if run.raw else list(range(len(cuts) - 1))
        self._codecs = {cut: CutCodec(cuts[cut], "int8") for cut in self._cuts if cut}
        self._rng = np.random.default_rng((run.seed, 99))
        self.sent_bytes = 0

    def ship(self, model: CutModel, generation: int, heard: list[_FrontWindow]) -> Iterator[TrainingWindow]:
        """Yields the windows in the form that the server's trainer takes."""
        drawn = self._rng.choice(self._cuts, len(heard))
        for cut in self._cuts:
            members = [window for window, chosen in zip(heard, drawn, strict=True) if chosen == cut]
            if not members:
                continue
            at = max(cut, self._first)
            with torch.inference_mode():
                received = run_segments(
                    model.segments[self._first : at], torch.stack([window.front for window in members]).float()
                )
                if cut:
                    received = self._over_the_wire(self._codecs[cut], received, len(members))
            rows = len(received) // len(members)
            for place, window in enumerate(members):
                yield TrainingWindow(
                    device=f"device-{window.device}",
                    boot="a",
                    index=window.index,
                    generation=generation,
                    cut=at,
                    activation=received[place * rows : (place + 1) * rows].clone(),
                )

    def _over_the_wire(self, codec: CutCodec, activations: torch.Tensor, count: int) -> torch.Tensor:
        received = []
        for part in np.split(activations.numpy(), count):
            payload, packed = codec.encode(part)
            self.sent_bytes += len(payload)
            received.append(codec.decode(payload, packed))
        return torch.from_numpy(np.concatenate(received))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--room", type=int, help="Seed of another room and microphone to hear everything through.")
    parser.add_argument("--terms", default="task", help=f"Some of {', '.join(TERMS)}.")
    parser.add_argument("--objective", default=TrainingRun.objective, choices=OBJECTIVES)
    parser.add_argument("--passes", type=int, default=TrainingRun.passes)
    parser.add_argument("--batch", type=int, default=TrainingRun.batch)
    parser.add_argument("--steps-per-chunk", type=int, default=TrainingRun.steps_per_chunk)
    parser.add_argument("--learning-rate", type=float, default=TrainingRun.learning_rate)
    parser.add_argument("--kept-share", type=float, default=TrainingRun.kept_share)
    parser.add_argument("--raw", action="store_true", help="Ship raw audio instead of activations at mixed cuts.")
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    torch.set_num_threads(1)
    audio, room, terms = given.pop("audio"), given.pop("room"), given.pop("terms")
    encoder, clips = load_encoder(given.pop("encoder")), load_clips(audio)
    if room is not None:
        clips = clips.heard_through(Room(room).hear)
    with tempfile.TemporaryDirectory() as work:
        staged = stage(encoder, clips, audio, Path(work))
        before = staged.judged(staged.start)
        print(f"before\n  {before}")
        for term in terms.split(","):
            print(term)
            learn(staged, TrainingRun(TERMS[term], **given), before)


if __name__ == "__main__":
    main()
