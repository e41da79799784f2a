"""Measures what sub-models cost in accuracy: ranked groups of channels against random ones, and uniform slicing.

    python -m tools.bench_modules mobilenet=encoder.pt resnet=resnet18.pt --audio recordings/ [--draws 20]

`recordings/esc10/labels.csv` and `recordings/speech_commands/labels.csv` name recordings with class and fold. Nothing
is labelled or taken from fold 5 while sub-models are made: windows of the other folds rank groups, stand in for what is
left out and set batch statistics. Then the head beside the encoder (`encoder.head.json`) judges the clips of fold 5 by
the classes of their own data set, or for a device by the few classes that it hears; it is not fitted again.

All arms are treated alike (`submodels.submodel`) and keep the same share of the multiply-adds inside blocks: `derived`
chooses groups and how many by the programme, `ranked` keeps the most important ones, the same share in each layer;
`l1` those with the largest weights; `uniform` the first ones; `random` any, and `shuffled` any, but as many in each
layer as `derived`. For devices, `own` arms see only the device's windows, and what is trained is the same for all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.formats.records.head import Head, read_head
from runtime_server.labels.labelled import windows_of
from streamsplit_compile.cli.compile_commands import head_beside
from streamsplit_compile.encoder.encoders import from_module, load_module
from streamsplit_compile.modules.derivation import Cost, Limits
from streamsplit_compile.modules.imitation import imitate
from streamsplit_compile.modules.layers import GROUP, channels_in, groups_of
from streamsplit_compile.modules.prices import price
from streamsplit_compile.modules.ranking import RankedLayer, Study, embeddings_of, study, study_again
from streamsplit_compile.modules.slicing import slice_encoder
from streamsplit_compile.modules.submodels import derive, submodel
from tools.benchmarks import Section, publish, show
from tools.judged_clips import interval, right_clips, split_clips
from tools.reference.corpus import GATE_DB

SHARES = (0.5, 0.35, 0.75)
HALF = 0.5
STUDIED, DEVICE_WINDOWS, IMITATED = 256, 128, 2000
STEPS = 100
DEVICES = 3
"""Draws of classes for each data set and number of classes."""
_A_CLIP = 4
Floats = npt.NDArray[np.float64]
Kept = dict[str, list[int]]


@dataclass(frozen=True)
class Images:
    """Log-mel images of windows, and the clip, class and data set of each."""

    images: Tensor
    """(windows, 1, mels, frames) float16."""
    owners: npt.NDArray[np.int64]
    """(windows,)."""
    labels: npt.NDArray[np.int64]
    """(clips,) indices of the head's labels."""
    sets: npt.NDArray[np.str_]
    """(clips,)."""

    def some(self, chosen: npt.NDArray[np.bool_], most: int, seed: int = 0) -> Tensor:
        """At most so many images (n, 1, mels, frames) float32 of the chosen clips (clips,), at random."""
        places = np.flatnonzero(chosen[self.owners])
        picked = np.random.default_rng(seed).permutation(places)[:most]
        return self.images[torch.from_numpy(picked)].float()


class ModulesBench:
    """An encoder behind its front end, with the images of all clips."""

    def __init__(self, path: Path, audio: Path, most: int | None) -> None:
        found = load_module(path)
        self.encoder: Any = found.module
        self.head: Head = read_head(head_beside(path))
        self.prices = price(from_module(found.name, found.config, found.module, None), found.module)
        judged, known = split_clips(audio)
        self.judged, self.known = (
            self._images([clip for clip, _ in judged][:: most or 1]),
            self._images([*known][:: most or 1]),
        )
        self.encoder.log_mel = nn.Identity()
        self.whole = embeddings_of(self.encoder, self.judged.images.float())
        self.costs = {
            name: [Cost(float(work.macs), 0.0, 0.0) for work in works] for name, works in self.prices.layers.items()
        }

    def _images(self, clips: list[Any]) -> Images:
        front: Any = self.encoder.front_end
        size = front.window_samples
        info = FrontEndInfo(sample_rate=front.sample_rate, window_samples=size, hop_samples=size // 2, details={})
        heard = windows_of(clips, info, _A_CLIP, GATE_DB)
        with torch.inference_mode():
            parts = [self.encoder.log_mel(part).half() for part in torch.from_numpy(heard.embeddings).split(64)]
        labels = np.array([self.head.labels.index(clip.labels[0]) for clip in clips])
        sets = np.array([clip.path.parent.parent.name for clip in clips])
        return Images(torch.cat(parts).clone(), heard.groups, labels, sets)

    def balanced(self, count: int) -> Tensor:
        """As many windows of each data set, shuffled."""
        names = np.unique(self.known.sets)
        parts = torch.cat([self.known.some(self.known.sets == name, count // len(names)) for name in names])
        return parts[torch.randperm(len(parts), generator=torch.Generator().manual_seed(0))]

    def right(self, embeddings: Tensor, classes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether each clip (clips,) of these classes is right, when the head chooses among them; False elsewhere."""
        logits = self.head.logits(embeddings.numpy())
        scores = np.zeros(logits.shape)
        scores[:, classes] = torch.softmax(torch.from_numpy(logits[:, classes]), 1).numpy()
        return right_clips(scores, self.judged.owners, self.judged.labels) & np.isin(self.judged.labels, classes)

    def right_of_all(self, embeddings: Tensor) -> npt.NDArray[np.bool_]:
        """(clips,) each judged among the classes of its data set."""
        own = [np.unique(self.judged.labels[self.judged.sets == name]) for name in np.unique(self.judged.sets)]
        return np.asarray(np.logical_or.reduce([self.right(embeddings, classes) for classes in own]))

    def small(self, known: Study, kept: Mapping[str, list[int]], windows: Tensor) -> Tensor:
        """A sub-model's embeddings of the judged windows."""
        return embeddings_of(submodel(self.encoder, known, kept, windows), self.judged.images.float())

    def embedded(self, small: nn.Module, clips: npt.NDArray[np.bool_]) -> Tensor:
        """Embeddings of the judged windows, zero for those of other clips than these (clips,)."""
        found, wanted = torch.zeros_like(self.whole), torch.from_numpy(clips[self.judged.owners])
        found[wanted] = embeddings_of(small, self.judged.images[wanted].float())
        return found

    def work(self, kept: Kept, known: Study) -> float:
        """The share of the multiply-adds inside blocks."""
        layers = {one.layer.name: one.layer for one in known.layers}
        whole = {name: works[-1].macs for name, works in self.prices.layers.items()}
        used = sum(whole[name] * len(channels) / layers[name].channels for name, channels in kept.items())
        return used / sum(whole.values())

    def derived(self, known: Study, share: float) -> Kept:
        """The programme's choice for a share of the multiply-adds inside blocks."""
        budget = share * sum(costs[-1].ms for costs in self.costs.values())
        return derive(known, Cost(0.0, 0.0, 0.0), self.costs, Limits(ms=budget)).kept


def even(known: Study, share: float, values: Mapping[str, npt.ArrayLike]) -> Kept:
    """The groups with the largest values, the same share in each layer."""
    return {one.layer.name: _largest(one, values, round(share * len(one.importance))) for one in known.layers}


def _largest(one: RankedLayer, values: Mapping[str, npt.ArrayLike], count: int) -> list[int]:
    order = np.argsort(-np.asarray(values[one.layer.name], float), kind="stable")
    return channels_in(one.layer, order[: max(1, count)].tolist())


def random_values(known: Study, seed: int) -> dict[str, npt.ArrayLike]:
    """Random importances."""
    random = np.random.default_rng(seed)
    return {one.layer.name: random.random(len(one.importance)) for one in known.layers}


def weight_values(bench: ModulesBench, known: Study) -> dict[str, npt.ArrayLike]:
    """Sums of the absolute weights that make each group's channels."""
    values = {}
    for one in known.layers:
        weight = bench.encoder.get_submodule(one.layer.writers[0]).weight.detach().abs().flatten(1).sum(1)
        values[one.layer.name] = [float(weight[list(group)].sum()) for group in groups_of(one.layer)]
    return values


def arms(bench: ModulesBench, known: Study, share: float, draws: int) -> Iterator[tuple[str, Kept]]:
    """Names and channels; those with many draws come as often."""
    chosen = bench.derived(known, share)
    yield "derived", chosen
    yield "ranked", even(known, share, {one.layer.name: one.importance for one in known.layers})
    yield "l1", even(known, share, weight_values(bench, known))
    yield "uniform", even(known, share, {one.layer.name: -np.arange(len(one.importance)) for one in known.layers})
    for seed in range(draws):
        values = random_values(known, seed)
        yield "random", even(known, share, values)
        yield (
            "shuffled",
            {
                one.layer.name: _largest(one, values, -(-len(chosen[one.layer.name]) // GROUP))
                if chosen[one.layer.name]
                else []
                for one in known.layers
            },
        )


def gate(bench: ModulesBench, known: Study, windows: Tensor, share: float, draws: int) -> dict[str, Floats]:
    """(clips,) share of an arm's draws in which each clip is right."""
    found: dict[str, list[npt.NDArray[np.bool_]]] = {}
    for name, kept in arms(bench, known, share, draws):
        found.setdefault(name, []).append(bench.right_of_all(bench.small(known, kept, windows)))
        print(share, name, f"{bench.work(kept, known):.3f}", f"{found[name][-1].mean():.4f}", flush=True)
    return {name: np.mean(values, axis=0) for name, values in found.items()}


@dataclass(frozen=True)
class OnDevices:
    """What devices that hear a few classes get right, by arm, over the clips of their classes, one after the other."""

    right: Mapping[str, Floats]
    seconds: float
    """The longest time for the programme and the slicing."""


def on_devices(
    bench: ModulesBench, known: Study, for_all: Mapping[str, Tensor], classes: int, share: float
) -> OnDevices:
    """Devices that hear `classes` classes of one data set, each with sub-models made from its own unlabelled windows.

    `for_all` has embeddings by sub-models that are the same for all devices.
    """
    right: dict[str, list[npt.NDArray[np.bool_]]] = {}
    longest = 0.0
    first = {one.layer.name: -np.arange(len(one.importance)) for one in known.layers}
    for number, own in enumerate(device_classes(bench, classes)):
        windows = bench.known.some(np.isin(bench.known.labels, own), DEVICE_WINDOWS, number)
        personal = study_again(known, bench.encoder, windows)
        began = time.monotonic()
        kept = bench.derived(personal, share)
        slice_encoder(bench.encoder, kept, personal.observation)
        longest = max(longest, time.monotonic() - began)
        clips = np.isin(bench.judged.labels, own)
        found = {"whole": bench.whole, **for_all}
        for arm, channels in (
            ("own", kept),
            ("own uniform", even(known, share, first)),
            ("own random", even(known, share, random_values(known, number))),
        ):
            found[arm] = bench.embedded(submodel(bench.encoder, personal, channels, windows), clips)
        for arm, embeddings in found.items():
            right.setdefault(arm, []).append(bench.right(embeddings, own)[clips])
        print(classes, own, {arm: round(float(values[-1].mean()), 3) for arm, values in right.items()}, flush=True)
    return OnDevices({arm: np.concatenate(values).astype(float) for arm, values in right.items()}, longest)


def device_classes(bench: ModulesBench, classes: int) -> Iterator[npt.NDArray[np.int64]]:
    """The classes of each device, all of one data set."""
    for number, data in enumerate(np.repeat(np.unique(bench.judged.sets), DEVICES)):
        every = np.unique(bench.judged.labels[bench.judged.sets == data])
        yield np.sort(np.random.default_rng(number).permutation(every)[:classes])


def imitated(bench: ModulesBench, known: Study, windows: Tensor, share: float) -> dict[str, Tensor]:
    """Three arms after a short training without labels: embeddings of the judged windows."""
    lessons = bench.balanced(IMITATED)
    taught, found = embeddings_of(bench.encoder, lessons), {}
    for name, kept in arms(bench, known, share, 1):
        if name in ("derived", "uniform", "random"):
            small = submodel(bench.encoder, known, kept, windows)
            imitate(small, lessons, taught, STEPS)
            found[name] = embeddings_of(small, bench.judged.images.float())
            print(share, name, "trained", f"{bench.right_of_all(found[name]).mean():.4f}", flush=True)
    return found


def difference(better: Floats, worse: Floats) -> tuple[float, str]:
    """Points between two arms, and the same with their interval, for people."""
    low, high = interval(better, worse)
    points = 100 * float((better - worse).mean())
    return points, f"{points:.1f} ({low:.1f} to {high:.1f})"


def parity_all_on(bench: ModulesBench) -> float:
    """The largest difference of an embedding's value when the blocks' outputs are summed group by group."""
    layers = bench.encoder.inner_layers()
    windows = bench.judged.images[:64].float()
    hooks = [
        bench.encoder.get_submodule(layer.readers[-1]).register_forward_hook(
            lambda module, inputs, _output, layer=layer: sum(
                nn.functional.conv2d(inputs[0][:, group], module.weight[:, group], None, module.stride, module.padding)
                for group in map(list, groups_of(layer))
            )
        )
        for layer in layers
    ]
    try:
        summed = embeddings_of(bench.encoder, windows)
    finally:
        for hook in hooks:
            hook.remove()
    return float((summed - embeddings_of(bench.encoder, windows)).abs().max())


def measure(name: str, bench: ModulesBench, draws: int, section: Section) -> Iterator[None]:
    """All figures of one encoder; yields after each part, the ones that matter most first."""
    windows = bench.balanced(STUDIED)
    known = study(bench.encoder, windows)
    whole = bench.right_of_all(bench.whole).astype(float)
    section.add(f"parity_all_on.{name}", parity_all_on(bench), "at most 0.00001", f"{name}: largest difference")
    section.detail(f"{name}: right, whole encoder", f"{whole.mean():.4f} of {len(whole)} clips")
    for share in SHARES:
        add_gate(section, f"{name}_{100 * share:.0f}", share, gate(bench, known, windows, share, draws))
        yield
        if share != HALF:
            continue
        trained = imitated(bench, known, windows, share)
        for arm, embeddings in trained.items():
            right = bench.right_of_all(embeddings).astype(float)
            what = f"{name}: {arm} at half of the work, trained for {STEPS} steps: right; points lost"
            section.detail(what, f"{right.mean():.4f}; {difference(whole, right)[1]}")
        yield
        for_all = {f"{arm}, trained": embeddings for arm, embeddings in trained.items()}
        for_all["derived"] = bench.small(known, bench.derived(known, share), windows)
        for classes in (2, 5):
            add_devices(section, name, classes, on_devices(bench, known, for_all, classes, share))
            yield


def add_gate(section: Section, name: str, share: float, found: Mapping[str, Floats]) -> None:
    """The figures of all classes at one share of the work."""
    where = f"at {share:.0%} of the work inside blocks"
    section.detail(f"{where}: right", ", ".join(f"{arm} {values.mean():.4f}" for arm, values in found.items()))
    for arm, other in (("ranked", "random"), ("derived", "shuffled"), ("derived", "random"), ("derived", "uniform")):
        points, said = difference(found[arm], found[other])
        section.add(f"{arm}_over_{other}.{name}", points, "", f"points {where}: {said}")


def add_devices(section: Section, name: str, classes: int, ran: OnDevices) -> None:
    """The figures of devices that hear so many classes."""
    where = f"{name} at half of the work inside blocks, {2 * DEVICES} devices of {classes} classes"
    lost, said = difference(ran.right["whole"], ran.right["derived, trained"])
    gain, gained = difference(ran.right["derived, trained"], ran.right["uniform, trained"])
    section.add(f"points_lost_half.{name}_{classes}", lost, "at most 2", f"points, {where}: {said}")
    section.add(f"gain_over_uniform.{name}_{classes}", gain, "at least 3", f"points, {where}, both trained: {gained}")
    for better, worse in (("own", "own uniform"), ("own", "own random"), ("own", "derived"), ("whole", "own")):
        section.detail(
            f"points, {where}, not trained: {better} over {worse}", difference(ran.right[better], ran.right[worse])[1]
        )
    section.detail(f"{where}: right", ", ".join(f"{arm} {right.mean():.4f}" for arm, right in ran.right.items()))
    section.add(f"derive_s.{name}_{classes}", ran.seconds, "at most 1", "s, the programme and the slicing; the longest")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--every", type=int, help="use only every so many recordings")
    parser.add_argument("--no-publish", action="store_true", help="print the numbers and leave docs/ alone")
    given = parser.parse_args(arguments)
    for encoder in given.encoders:
        name, _, path = encoder.partition("=")
        section = Section("modules", f"Sub-models: {name}", "python -m tools.bench_modules", part=name)
        for _ in measure(name, ModulesBench(Path(path), given.audio, given.every), given.draws, section):
            (show if given.no_publish else publish)(section)


if __name__ == "__main__":
    main()
