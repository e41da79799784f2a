"""Measures adaptation through normalisation layers: recordings are heard through noise, a room, a lost band, clipping.

    python -m tools.bench_adapt encoder.pt head.json larger.pt --audio recordings/ [--hours 6] [--quick]

`recordings/esc10/labels.csv` and `recordings/speech_commands/labels.csv` name recordings with class and fold; those of
fold 5 are played once, corrupted (`tools.corruptions`), shuffled or in runs of one class, or so that the corruption
changes. As on a device, the encoder
answers each window, and a gate sends some of them, as Opus at 24 kbit/s. After every 32 of these the method moves the
norms' scales and shifts, and the device runs on with the new ones, rounded to float16 as in the file that it would be
sent.

Arms: `unadapted`; `teacher` answers itself, that is `larger.pt` (`tools.train_larger`); `averaged` is its mean answer
to five copies of a window, shifted by up to a tenth of it; `joint` is taught by it, and a gate sends it the most
uncertain 44 %; `chance` is the same with as many windows sent by chance, `everything` with all windows, `half` with
half of those of its gate, `blended` with batch norms whose statistics follow what is heard; `floor` trains only what
is behind `features.3`, taught by the encoder as it began, as behind a privacy floor. With the published gate,
which sends what is neither certain nor hopeless: `cema` as published, with the same teacher; `tent`, `eata` and `sar`;
and `oracle`, the labels of what is sent.

Each run adds a line to `--kept` and is not measured again. Two processes may share the work (`--part 1/2` and
`--part 2/2`, each with a file of its own). `--publish` adds the lines to docs/adaptation-runs.jsonl, whose runs count
as measured, and makes docs/adaptation-streams.md from all of them.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from runtime_edge.audio.wire_streams import AudioStreamDecoder, AudioStreamEncoder
from runtime_edge.formats.records.actions import ShipThresholds
from runtime_edge.formats.records.head import Head, entropy, read_head
from runtime_edge.policy.ship_gate import MostUncertain, ShipGate
from runtime_server.adaptation.classifier import Classifier, norm_layers
from runtime_server.adaptation.methods import ALONE, Blended, Cema, Joint, Method
from runtime_server.adaptation.methods.adaptation_method import BATCH, LEARNING_RATE, MOMENTUM
from runtime_server.adaptation.methods.eata import Eata, importance
from runtime_server.labels.labelled import windows_of
from runtime_server.suffix.generations import copy_module
from streamsplit_compile.encoder.encoders import LoadedEncoder, load_encoder
from tools.adaptation_figures import CHANGING, section
from tools.adaptation_page import write_page
from tools.benchmarks import DOCS, publish
from tools.corruptions import CORRUPTIONS, SEVERITIES, changes
from tools.judged_clips import Bools, right_clips, split_clips
from tools.reference.corpus import GATE_DB
from tools.train_larger import front_end_of, head_of

KBPS = 24.0
WARM_UP = 100
SEEDS = range(3)
ORDERS = ("shuffled", "runs")
SHARE = 0.44
"""Of the windows that `joint` is sent."""
EVERYWHERE = ("unadapted", "joint")
AT_TWO_SEVERITIES = ("chance", "half", "teacher", "tent", "oracle", "eata", "sar", "everything", "cema")
AT_ONE_SEED = ("blended", "averaged", "floor")
_JOINT = ("joint", "chance", "everything", "half", "blended", "floor")
_A_CLIP, _FISHER = 4, 256
_FLOOR = "features.3"
_SHIFTS = (-0.1, -0.05, 0.0, 0.05, 0.1)
"""Shares of a window by which `averaged` shifts its copies."""
_AHEAD = 32
"""Windows that are answered in one call, while the encoder stays the same."""
PUBLISHED = DOCS / "adaptation-runs.jsonl"
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Cell:
    """One stream and what is done about it."""

    kind: str
    severity: int
    order: str
    seed: int
    arm: str

    def __str__(self) -> str:
        """The cell as text for people."""
        return f"{self.kind} {self.severity}, {self.order}, seed {self.seed}, {self.arm}"


def cells() -> list[Cell]:
    """All cells, arm by arm."""
    streams = [(kind, order, seed) for seed in SEEDS for order in ORDERS for kind in CORRUPTIONS]
    both = [Cell(kind, severity, order, seed, arm) for severity in (3, 5) for kind, order, seed in streams
            for arm in (*EVERYWHERE, *AT_TWO_SEVERITIES, *(AT_ONE_SEED if seed == 0 else ()))]  # fmt: skip
    rest = [Cell(kind, severity, order, seed, arm) for severity in SEVERITIES if severity not in (3, 5)
            for kind, order, seed in streams for arm in EVERYWHERE]  # fmt: skip
    changing = [Cell(CHANGING, 4, "shuffled", seed, arm) for seed in SEEDS for arm in EVERYWHERE]
    arms = (*EVERYWHERE, *AT_TWO_SEVERITIES, *AT_ONE_SEED)
    return sorted(both + changing + rest, key=lambda cell: arms.index(cell.arm))


class Oracle:
    """Cross-entropy on the true labels of what is sent."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._steps = torch.optim.SGD(classifier.adaptable().values(), lr=LEARNING_RATE, momentum=MOMENTUM)
        self.labels = torch.zeros(0, dtype=torch.int64)
        """Of the windows of the next update."""

    def update(self, windows: Tensor) -> None:
        """One step."""
        self._steps.zero_grad()
        functional.cross_entropy(self._classifier(windows), self.labels).backward()  # type: ignore[no-untyped-call]
        self._steps.step()


class _Averaged(Classifier):
    """Logits whose softmax is the mean of the scores of shifted copies of a window."""

    def forward(self, windows: Tensor) -> Tensor:
        answer, size = super().forward, windows.shape[1]
        copies = [answer(windows.roll(round(share * size), 1)).softmax(1) for share in _SHIFTS]
        return torch.stack(copies).mean(0).log()


@dataclass(frozen=True)
class Ran:
    """One run of a stream."""

    right: Bools
    """(clips,) by the mean scores of a clip's windows, as they were answered."""
    clean: Bools
    """(clips,) the same clips without corruption, after the stream."""
    shipped: float
    """Share of the windows."""
    payload: int
    """Bytes of Opus."""
    updates: int
    windows: int
    """Of the stream."""


class AdaptBench:
    """The encoders, and the recordings of the fold that is judged."""

    def __init__(self, encoder: Path, head: Path, larger: Path, audio: Path, most: int | None = None) -> None:
        self._encoder, self._head, self._larger = load_encoder(encoder), read_head(head), load_encoder(larger)
        self._front_end = front_end_of(self._encoder)
        judged, known = split_clips(audio)
        judged = judged[:: -(-len(judged) // most)] if most else judged
        heard = windows_of([clip for clip, _ in judged], self._front_end, _A_CLIP, GATE_DB)
        self._windows, self.owners = heard.embeddings, heard.groups
        self.truth = np.array([self._head.labels.index(clip.labels[0]) for clip, _ in judged])
        fitted = windows_of(known, self._front_end, 1, GATE_DB)
        self._known = fitted.embeddings
        self.shares: dict[Cell, float] = {}
        """The share of the windows that cells have sent, so that none is played only to find that out."""
        self._teacher_head = head_of(self._larger, fitted)

    def run(self, cell: Cell) -> Ran:
        """Play one cell."""
        student = self._student(cell)
        places, windows = self.stream(cell)
        gate, method = self._gate(cell), self._method(cell, student)
        scores = np.zeros((len(self._windows), len(self._head.labels)))
        encoder, waiting, payload, shipped, updates = self._wire(), list[tuple[Array, int]](), 0, 0, 0
        ahead: dict[int, Array] = {}
        for index, place in enumerate(places):
            if place not in ahead:
                ahead = _answers(student, windows, places[index : index + _AHEAD])
            scores[place] = ahead[place]
            if method is None or not gate(float(entropy(ahead[place], "softmax"))):
                continue
            sent, size = (windows[place], 0) if cell.arm == "floor" else self._opus(encoder, windows[place], 2 * index)
            waiting.append((sent, int(self.truth[self.owners[place]])))
            payload, shipped = payload + size, shipped + 1
            if len(waiting) == BATCH:
                if isinstance(method, Oracle):
                    method.labels = torch.tensor([label for _, label in waiting])
                method.update(torch.from_numpy(np.stack([window for window, _ in waiting])))
                _round(student)
                waiting, updates, ahead = [], updates + 1, {}
        every = range(len(self._windows))
        clean = [_answers(student, self._windows, every[start : start + _AHEAD]) for start in every[::_AHEAD]]
        still = np.array([answer for part in clean for answer in part.values()], np.float64)
        right, kept = (right_clips(one, self.owners, self.truth) for one in (scores, still))
        self.shares[cell] = shipped / len(places)
        return Ran(right, kept, shipped / len(places), payload, updates, len(places))

    def stream(self, cell: Cell) -> tuple[list[int], Array]:
        """The order of the windows, clip by clip, and the windows (n, samples) as they are heard."""
        random = np.random.default_rng(cell.seed)
        clips = random.permutation(np.unique(self.owners))
        if cell.order == "runs":
            clips = clips[np.argsort(random.permutation(len(self._head.labels))[self.truth[clips]], kind="stable")]
        places = [int(place) for clip in clips for place in np.flatnonzero(self.owners == clip)]
        heard_through = changes(len(clips)) if cell.kind == CHANGING else [cell.kind] * len(clips)
        kinds = dict(zip(clips.tolist(), heard_through, strict=True))
        heard = self._windows.copy()
        for place, owner in enumerate(self.owners.tolist()):
            if kind := kinds[owner]:
                heard[place] = CORRUPTIONS[kind](heard[place], cell.severity, 10_000 * cell.seed + place)
        return places, heard

    def _gate(self, cell: Cell) -> Callable[[float], bool]:
        random, gate = np.random.default_rng(1000 + cell.seed), MostUncertain(SHARE)
        if cell.arm not in _JOINT:
            return ShipGate(ShipThresholds(warm_up=WARM_UP, exploration=0.0), cell.seed).ships
        if cell.arm == "everything":
            return lambda _: True
        if cell.arm == "half":
            return lambda found: gate.ships(found) and bool(random.random() < 0.5)
        if cell.arm == "chance":
            share = self._share(replace(cell, arm="joint"))
            return lambda _: bool(random.random() < share)
        return gate.ships

    def _method(self, cell: Cell, student: Classifier) -> Method | None:
        if cell.arm in ("unadapted", "teacher", "averaged"):
            return None
        if cell.arm == "oracle":
            return Oracle(student)
        if cell.arm in _JOINT:
            teacher = self._student(cell) if cell.arm == "floor" else self._teacher()
            joint = Joint(student, teacher, torch.from_numpy(self._known), cell.seed)
            return Blended(joint, student) if cell.arm == "blended" else joint
        if cell.arm == "cema":
            return Cema(student, self._teacher(), cell.seed)
        return Eata(student, matters=self._matters) if cell.arm == "eata" else ALONE[cell.arm](student)

    def _student(self, cell: Cell) -> Classifier:
        if cell.arm == "averaged":
            return _Averaged(copy_module(self._larger.graph.module), self._teacher_head)
        if cell.arm == "floor":
            encoder = copy_module(self._encoder.graph.module)
            names = norm_layers(encoder)
            place = next(place for place, name in enumerate(names) if name.startswith(_FLOOR))
            return Classifier(encoder, self._head, [name for name in names[place:] if not name.startswith(_FLOOR)])
        return self._teacher() if cell.arm == "teacher" else _classifier(self._encoder, self._head)

    def _teacher(self) -> Classifier:
        return _classifier(self._larger, self._teacher_head)

    @functools.cached_property
    def _matters(self) -> dict[str, Tensor]:
        windows = torch.from_numpy(self._known[:: -(-len(self._known) // _FISHER)])
        return importance(_classifier(self._encoder, self._head), windows)

    def _share(self, cell: Cell) -> float:
        """The share of windows that a cell sends, which is played if it is not known."""
        if cell not in self.shares:
            self.run(cell)
        return self.shares[cell]

    def _opus(self, encoder: AudioStreamEncoder, window: Array, sequence: int) -> tuple[Array, int]:
        """A window as the server hears it, and its bytes on the way."""
        data = encoder.encode(window, sequence, alone=True)
        return AudioStreamDecoder("opus", *self._timing).decode(data, sequence)[0], len(data)

    @property
    def _timing(self) -> tuple[int, int, int]:
        front = self._front_end
        return front.sample_rate, front.window_samples, front.hop_samples

    def _wire(self) -> AudioStreamEncoder:
        return AudioStreamEncoder("opus", *self._timing, KBPS)


def _classifier(encoder: LoadedEncoder, head: Head) -> Classifier:
    return Classifier(copy_module(encoder.graph.module), head)


def _answers(classifier: Classifier, windows: Array, places: Sequence[int]) -> dict[int, Array]:
    """The scores (labels,) of the windows at these places, by place."""
    with torch.inference_mode():
        found = classifier(torch.from_numpy(windows[list(places)])).softmax(1).numpy()
    return dict(zip(places, found, strict=True))


def _round(classifier: Classifier) -> None:
    """To float16, as an adaptation is sent."""
    with torch.no_grad():
        for value in classifier.adaptable().values():
            value.copy_(value.half())


def kept_lines(*files: Path) -> dict[Cell, str]:
    """The lines of finished runs."""
    lines = [line for path in files if path.exists() for line in path.read_text().splitlines()]
    return {Cell(**json.loads(line)["cell"]): line for line in lines}


def told(cell: Cell, ran: Ran) -> str:
    """The line of a run: a clip is a bit of `right` and of `clean`, in hexadecimal."""
    bits = {"right": np.packbits(ran.right).tobytes().hex(), "clean": np.packbits(ran.clean).tobytes().hex()}
    figures = {"shipped": round(ran.shipped, 4), "payload": ran.payload, "updates": ran.updates, "windows": ran.windows}
    return json.dumps({"cell": asdict(cell), **figures, "clips": len(ran.right), **bits})


def run_of(line: str) -> dict[str, Any]:
    """The run of a line, with an array of 0 and 1 in place of bits."""
    run = json.loads(line)
    for name in ("right", "clean"):
        packed = np.frombuffer(bytes.fromhex(run[name]), np.uint8)
        run[name] = np.unpackbits(packed, count=run["clips"]).astype(int)
    return dict(run)


def measured(
    bench: AdaptBench, wanted: Sequence[Cell], kept: Path, hours: float, published: Path = PUBLISHED
) -> Iterator[str]:
    """Do the runs that are neither kept nor published yet until the hours are over; yields a line for each."""
    known, until = kept_lines(published, kept), time.monotonic() + 3600 * hours
    bench.shares.update({cell: run_of(line)["shipped"] for cell, line in known.items()})
    for cell in wanted:
        if cell in known or time.monotonic() > until:
            continue
        ran = bench.run(cell)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with kept.open("a") as lines:
            lines.write(told(cell, ran) + "\n")
        yield f"{cell}: right {ran.right.mean():.4f}, clean after {ran.clean.mean():.4f}, shipped {ran.shipped:.2f}"


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path, help="The device's.")
    parser.add_argument("head", type=Path)
    parser.add_argument("larger", type=Path, help="The teacher, as `tools.train_larger` writes it.")
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--kept", type=Path, default=Path(".cache/adapt.jsonl"), help="Gets the finished runs.")
    parser.add_argument("--only", help="cells whose text contains this, such as `room 3, shuffled, seed 0`")
    parser.add_argument("--quick", action="store_true", help="Forty recordings, for a trial; not to be published.")
    parser.add_argument("--part", default="1/1", help="Do every n-th run, such as 1/2.")
    parser.add_argument("--publish", action="store_true", help="Write docs/adaptation-* and docs/benchmarks.*.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.hours:
        part, parts = map(int, given.part.split("/"))
        bench = AdaptBench(given.encoder, given.head, given.larger, given.audio, 40 if given.quick else None)
        wanted = [cell for cell in cells() if given.only is None or given.only in str(cell)][part - 1 :: parts]
        for line in measured(bench, wanted, given.kept, given.hours):
            print(line, flush=True)
    if given.publish and not given.quick:
        publish_runs(given.kept)


def publish_runs(kept: Path) -> None:
    """Add the kept runs to those that are published, and make the page and the figures from all of them."""
    found = {**kept_lines(PUBLISHED), **kept_lines(kept)}
    planned = [cell for cell in cells() if cell in found]
    PUBLISHED.write_text("".join(found[cell] + "\n" for cell in planned))
    runs = [run_of(found[cell]) for cell in planned]
    write_page(runs, len(cells()))
    publish(section(runs, len(cells()), "python -m tools.bench_adapt"))


if __name__ == "__main__":
    main()
