"""The server of `tools.bench_module_adaptation`: its encoder, what it knows of it, and the arms that start from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runtime_edge.policy.memory import GaussianMemory
from runtime_server.submodels.device_groups import group_devices
from runtime_server.submodels.enhancing import Lessons, enhance, train_selector
from runtime_server.submodels.selector import Selector, responsibilities_of
from runtime_server.submodels.trained_variants import plan
from streamsplit_compile.encoder.encoders import from_module, new_encoder
from streamsplit_compile.modules.derivation import Cost, Limits
from streamsplit_compile.modules.layers import channels_in, groups_of, layers_of
from streamsplit_compile.modules.prices import price
from streamsplit_compile.modules.ranking import RankedLayer, Study, embeddings_of, study
from streamsplit_compile.modules.submodels import derive
from tools.module_arms import LABEL_WEIGHT, Arm, Averaged, Fixed, Local, Share, SubModels
from tools.proxy_encoder import ENCODER, shared_out, train
from tools.reference.corpus import SETS, Corpus, Integers
from tools.reference.crops import windows
from tools.reference.training import SCALE
from tools.word_devices import Fleet, Heard

CUT = 6
"""The last of the encoder's blocks that is frozen."""
SHARE, GROUPS, COMPONENTS, TASKS, TRAINED = 0.5, 4, 16, 4, 8
EPOCHS, SELECTOR_STEPS, ENHANCE_STEPS, CALIBRATED = 30, 100, 200, 256
ARMS = (
    "none", "ours", "averaged", "enhanced", "uniform", "random", "head", "l1", "local", "none_ours", "none_enhanced",
)  # fmt: skip
"""Those that matter most first."""
_BY_GATES = ("ours", "enhanced", "none_ours")


@dataclass(frozen=True)
class Cell:
    """One run."""

    data: str
    words: int
    seed: int
    arm: str


class Server:
    """The server's encoder behind its frozen blocks, and the activations of all windows at the cut."""

    def __init__(self, audio: Path, work: Path) -> None:
        self.corpus, self.server = shared_out(audio, work)
        encoder, self.head = _trained(self.corpus, self.server, work)
        self.values = sum(value.numel() for value in encoder.state_dict().values() if value.is_floating_point())
        self.works = price(from_module(ENCODER, {}, encoder, None), encoder).layers
        every, width = np.arange(len(self.corpus.labels)), encoder.front_end.frames
        images, self.owners = windows(self.corpus, every, width, width)
        with torch.inference_mode():
            parts = [_frozen(encoder, part.float()) for part in torch.from_numpy(images).split(64)]
        self.activations = torch.cat(parts).clone().contiguous(memory_format=torch.channels_last)
        encoder.log_mel, encoder.input_norm = nn.Identity(), nn.Identity()
        for number in range(CUT + 1):
            encoder.features[number] = nn.Identity()
        self.encoder: Any = encoder.to(memory_format=torch.channels_last)
        embeddings = embeddings_of(encoder, self.activations)
        with torch.no_grad():
            self.logits = SCALE * self.head(embeddings)
        memory = GaussianMemory(COMPONENTS, embeddings.shape[1])
        lessons = np.flatnonzero(np.isin(self.owners, self.server))
        lessons = np.random.default_rng(0).permutation(lessons)
        memory.learn(embeddings[torch.from_numpy(lessons)].numpy())
        self.heard = responsibilities_of(memory, embeddings)
        labels = torch.from_numpy(self.corpus.labels[self.owners])
        self.lessons = Lessons(*(one[torch.from_numpy(lessons)] for one in (self.activations, labels, self.heard)))
        self.known = study(encoder, self.lessons.windows[:CALIBRATED])
        self._prepared: dict[bool, tuple[Any, nn.Linear, Selector]] = {}

    def recordings(self, data: str) -> Integers:
        """Those of one data set that the devices share."""
        own = np.flatnonzero(self.corpus.sets == SETS.index(data))
        return np.setdiff1d(own, self.server)

    def share(self, heard: Heard, fleet: Fleet, classes: Integers) -> Share:
        """What a device sends to the server in one step."""
        chosen = torch.from_numpy(np.flatnonzero(np.isin(self.owners, heard.learnt)))
        owners = self.owners[chosen.numpy()]
        labelled = torch.tensor([int(owner) in fleet.labelled for owner in owners])
        certain, guessed = torch.softmax(self.logits[chosen][:, classes], 1).max(1)
        truth = torch.from_numpy(self.corpus.labels[owners])
        labels = torch.where(labelled, truth, torch.from_numpy(classes)[guessed])
        weights = torch.where(labelled, LABEL_WEIGHT, certain)
        return Share(self.activations[chosen], labels, weights, self.heard[chosen])

    def prepared(self, enhanced: bool) -> tuple[Any, nn.Linear, Selector]:
        """Copies of the encoder, its head and a trained selector, after the ability-enhancing stage or before it."""
        if enhanced not in self._prepared:
            encoder, head = copy.deepcopy(self.encoder), copy.deepcopy(self.head)
            selector = Selector(COMPONENTS, {one.layer.name: torch.tensor(one.importance) for one in self.known.layers})
            counts = {one.layer.name: round(SHARE * len(one.importance)) for one in self.known.layers}

            def logits_of(embeddings: Tensor) -> Tensor:
                return SCALE * head(embeddings)

            encoder.requires_grad_(False)
            train_selector(encoder, logits_of, selector, self.lessons, counts, SELECTOR_STEPS)
            if enhanced:
                encoder.requires_grad_()
                tasks = _tasks(self.lessons, TASKS)
                enhance(encoder, head, logits_of, selector, self.lessons, tasks, counts, ENHANCE_STEPS)
            self._prepared[enhanced] = (encoder, head, selector)
        return copy.deepcopy(self._prepared[enhanced])

    def derived(self, importance: dict[str, Tensor]) -> dict[str, list[int]]:
        """Half of the multiply-adds behind the cut, sizes by the programme, the groups with the largest gates."""
        ranked = tuple(
            RankedLayer(one.layer, tuple(importance[one.layer.name].tolist()), one.losses) for one in self.known.layers
        )
        costs = {
            one.layer.name: [Cost(float(work.macs), 0.0, 0.0) for work in self.works[one.layer.name]]
            for one in self.known.layers
        }
        limits = Limits(ms=SHARE * sum(own[-1].ms for own in costs.values()))
        return derive(Study(self.known.observation, ranked), Cost(0.0, 0.0, 0.0), costs, limits).kept

    def arm(self, cell: Cell, first: Sequence[Share]) -> Arm:
        """An arm before its first step; `first` is what the devices hear in it, without labels."""
        if cell.arm in ("none", "head"):
            return Fixed(self.encoder, self.head, cell.arm == "head")
        if cell.arm == "local":
            return Local(self.encoder, self.head, len(first))
        if cell.arm == "averaged":
            return Averaged(self.encoder, self.head)
        encoder, head, selector = self.prepared(cell.arm in ("enhanced", "none_enhanced"))
        if cell.arm == "none_enhanced":
            return Fixed(encoder, head, False)
        if cell.arm not in _BY_GATES:
            encoder, head = copy.deepcopy(self.encoder), copy.deepcopy(self.head)
        groups = group_devices(np.stack([share.heard.mean(0).double().numpy() for share in first]), GROUPS)
        owners = groups.nearest(np.stack([share.heard.mean(0).double().numpy() for share in first]))
        observed = study(encoder, self.lessons.windows[:CALIBRATED]).observation
        plans = []
        for number in range(len(groups.middles)):
            if cell.arm in _BY_GATES:
                heard = [share.heard for share, owner in zip(first, owners, strict=True) if owner == number]
                values = selector.importance(torch.cat(heard))
                kept = self.derived(values)
            else:
                values = _values(cell.arm, encoder, 100 * cell.seed + number)
                kept = _even(encoder, values)
            plans.append(plan(encoder, kept, _first(encoder, values, kept), observed))
        return SubModels(
            encoder.requires_grad_(False), head, groups, plans, selector if cell.arm in _BY_GATES else None,
            self.lessons.windows[:CALIBRATED], adapts=cell.arm != "none_ours",
        )  # fmt: skip


def _trained(corpus: Corpus, server: Integers, work: Path) -> tuple[Any, nn.Linear]:
    """The server's encoder and head, trained once."""
    file = work / f"proxy-{EPOCHS}.pt"
    if not file.exists():
        encoder, head = train(corpus, server, EPOCHS)
        torch.save({"encoder": encoder.state_dict(), "head": head.state_dict()}, file)
    stored = torch.load(file, weights_only=True)
    encoder, head = new_encoder(ENCODER)[0], nn.Linear(128, len(corpus.names))
    encoder.load_state_dict(stored["encoder"])
    head.load_state_dict(stored["head"])
    return encoder, head.requires_grad_(False)


def _frozen(encoder: Any, images: Tensor) -> Tensor:
    """Activations at the cut."""
    images = encoder.input_norm(images)
    for number in range(CUT + 1):
        images = encoder.features[number](images)
    return images


def _tasks(lessons: Lessons, count: int) -> list[Tensor]:
    """Sub-tasks: windows whose components are alike in the labels that they have, each about as large."""
    component = lessons.responsibilities.argmax(1)
    labels = torch.nn.functional.one_hot(lessons.labels).float()
    rows = torch.stack([labels[component == own].sum(0) for own in range(lessons.responsibilities.shape[1])])
    order = rows.argmax(1) * len(rows) + torch.arange(len(rows))
    sizes, tasks = rows.sum(1), [[] for _ in range(count)]
    for own in order.argsort().tolist():
        smallest = min(range(count), key=lambda task: sum(float(sizes[one]) for one in tasks[task]))
        tasks[smallest].append(own)
    found = [torch.isin(component, torch.tensor(own, dtype=torch.int64)).nonzero()[:, 0] for own in tasks]
    return [task for task in found if len(task)]


def _values(arm: str, encoder: Any, seed: int) -> dict[str, Tensor]:
    """What ranks groups (groups,) of each layer without looking at data."""
    random, found = np.random.default_rng(seed), {}
    for layer in layers_of(encoder):
        groups = groups_of(layer)
        if arm == "random":
            found[layer.name] = torch.from_numpy(random.random(len(groups)))
        elif arm == "uniform":
            found[layer.name] = -torch.arange(len(groups)).double()
        else:
            weight = encoder.get_submodule(layer.writers[0]).weight.detach().abs().flatten(1).sum(1)
            found[layer.name] = torch.stack([weight[list(group)].sum() for group in groups])
    return found


def _even(encoder: Any, values: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The same share of each layer's groups."""
    kept = {}
    for layer in layers_of(encoder):
        order = values[layer.name].argsort(descending=True, stable=True).tolist()
        kept[layer.name] = channels_in(layer, order[: round(SHARE * len(order))])
    return kept


def _first(encoder: Any, values: Mapping[str, Tensor], kept: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The groups that train: at most `TRAINED` of each layer, those with the largest values among the kept ones."""
    found = {}
    for layer in layers_of(encoder):
        order = values[layer.name].argsort(descending=True, stable=True).tolist()
        own = [group for group in order if groups_of(layer)[group][0] in set(kept[layer.name])]
        found[layer.name] = tuple(own[:TRAINED])
    return found
