"""The ways of adapting that `tools.bench_module_adaptation` compares: whole suffixes, and sub-models of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime_server.submodels.aggregation import Contribution, aggregate
from runtime_server.submodels.device_groups import DeviceGroups
from runtime_server.submodels.trained_variants import Plan, placed, train_only, values_to_send, variant
from streamsplit_compile.modules.slicing import recalibrate
from tools.reference.training import SCALE

RATE, EPOCHS, BATCH = 1e-3, 2, 32
HEAD_RATE, HEAD_STEPS = 4e-3, 20
LABEL_WEIGHT = 4.0
"""Of a window with a label; one with a pseudo-label counts as much as the encoder was certain, at most 1."""
State = dict[str, Tensor]


@dataclass(frozen=True)
class Share:
    """The windows of one device, or of several, to learn from."""

    windows: Tensor
    """(n, channels, mels, frames) activations at the cut."""
    labels: Tensor
    """(n,) labels, or pseudo-labels."""
    weights: Tensor
    """(n,)."""
    heard: Tensor
    """(n, components) responsibilities."""

    @staticmethod
    def of(parts: Sequence[Share]) -> Share:
        """All windows of some devices."""
        return Share(*(torch.cat([getattr(part, name) for part in parts]) for name in Share.__dataclass_fields__))


@dataclass
class Ran:
    """What devices run after a step."""

    modules: list[nn.Module]
    heads: list[nn.Linear]
    """One of each device."""
    values: list[int]
    """Values that each device was sent."""


class Arm(Protocol):
    """One way of adapting."""

    def step(self, shares: Sequence[Share], seed: int) -> Ran:
        """Adapt to what the devices hear in one step."""


def fit(module: nn.Module, head: nn.Linear, parameters: Sequence[nn.Parameter], share: Share, seed: int) -> None:
    """Train these parameters and the head on a share; batch norms use their running statistics."""
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam([*parameters, *head.requires_grad_().parameters()], lr=RATE, fused=True)
    module.eval()
    for _ in range(EPOCHS):
        for chosen in torch.split(torch.randperm(len(share.labels), generator=random), BATCH):
            logits = SCALE * head(module(share.windows[chosen]))
            losses = functional.cross_entropy(logits, share.labels[chosen], reduction="none")
            optimiser.zero_grad()
            (losses * share.weights[chosen]).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()


def fit_head(module: nn.Module, head: nn.Linear, share: Share) -> nn.Linear:
    """A device's own head, from the one that it starts from."""
    own = copy.deepcopy(head).requires_grad_()
    with torch.no_grad():
        embeddings = module(share.windows)
    optimiser = torch.optim.Adam(own.parameters(), lr=HEAD_RATE)
    for _ in range(HEAD_STEPS):
        losses = functional.cross_entropy(SCALE * own(embeddings), share.labels, reduction="none")
        optimiser.zero_grad()
        (losses * share.weights).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return own


class Fixed:
    """The encoder, or one sub-model, as it is; with `heads`, each device has its own head."""

    def __init__(self, module: nn.Module, head: nn.Linear, heads: bool) -> None:
        self._module, self._head, self._heads = module, head, heads

    def step(self, shares: Sequence[Share], seed: int) -> Ran:
        """Nothing but heads."""
        count = len(shares)
        if not self._heads:
            return Ran([self._module] * count, [self._head] * count, [0] * count)
        heads = [fit_head(self._module, self._head, share) for share in shares]
        return Ran([self._module] * count, heads, [_size(self._head)] * count)


class Local:
    """Each device has a suffix of its own, which is trained on its windows alone."""

    def __init__(self, whole: nn.Module, head: nn.Linear, devices: int) -> None:
        self._modules = [copy.deepcopy(whole) for _ in range(devices)]
        self._heads = [copy.deepcopy(head) for _ in range(devices)]
        self._held: list[list[State]] = [[placed(whole.state_dict(), whole, {})] for _ in range(devices)]

    def step(self, shares: Sequence[Share], seed: int) -> Ran:
        """Go on from where each device is."""
        values = []
        for device, share in enumerate(shares):
            module, head = self._modules[device], self._heads[device]
            fit(module, head, list(module.requires_grad_().parameters()), share, seed + device)
            state = placed(module.state_dict(), module, {})
            values.append(values_to_send(state, self._held[device]) + _size(head))
            self._held[device] = [state]
        heads = [fit_head(*one) for one in zip(self._modules, self._heads, shares, strict=True)]
        return Ran(self._modules, heads, values)


class Averaged:
    """Each device's suffix is trained on its windows; all get the mean by windows, and a head of their own."""

    def __init__(self, whole: nn.Module, head: nn.Linear) -> None:
        self._whole, self._head = copy.deepcopy(whole), copy.deepcopy(head)
        self._held = [placed(whole.state_dict(), whole, {})]

    def step(self, shares: Sequence[Share], seed: int) -> Ran:
        """Train copies of the mean and average them."""
        trained = []
        for device, share in enumerate(shares):
            module, head = copy.deepcopy(self._whole), copy.deepcopy(self._head)
            fit(module, head, list(module.requires_grad_().parameters()), share, seed + device)
            trained.append((module, head, len(share.labels)))
        self._whole, self._head = (
            _mean([(one[which], one[2]) for one in trained])  # type: ignore[misc]
            for which in (0, 1)
        )
        state = placed(self._whole.state_dict(), self._whole, {})
        values = values_to_send(state, self._held) + _size(self._head)
        self._held = [state]
        heads = [fit_head(self._whole, self._head, share) for share in shares]
        return Ran([self._whole] * len(shares), heads, [values] * len(shares))


@dataclass
class SubModels:
    """Groups of devices share sub-models; their groups of channels are trained and brought back into the encoder."""

    whole: nn.Module
    head: nn.Linear
    groups: DeviceGroups
    plans: list[Plan]
    """By group of devices."""
    selector: Any
    """What says how important groups of channels are; None if all count alike."""
    calibration: Tensor
    """Windows of the server on which the whole encoder's batch statistics are measured again."""
    adapts: bool = True
    """Whether anything trains; if not, devices run sub-models as they were derived, with the encoder's head."""
    held: list[dict[int, State]] = field(default_factory=list)
    """The sub-models that each device has in store, by group of devices."""

    def step(self, shares: Sequence[Share], seed: int) -> Ran:
        """Train the sub-model of each group of devices on what they hear, then aggregate."""
        heard = np.stack([share.heard.mean(0).double().numpy() for share in shares])
        owners = self.groups.nearest(heard)
        if not self.adapts:
            return self._as_derived(owners.tolist())
        self.held = self.held or self._deployed(owners.tolist())
        trained: dict[int, tuple[nn.Module, nn.Linear, int]] = {}
        contributions, states = [], {}
        for group in np.unique(owners).tolist():
            share = Share.of([shares[device] for device in np.flatnonzero(owners == group)])
            plan, head = self.plans[group], copy.deepcopy(self.head)
            small = variant(self.whole, plan)
            recalibrate(small, share.windows)
            fit(small, head, train_only(small, self.whole, plan), share, seed + group)
            trained[group] = (small, head, len(share.labels))
            contributions.append(Contribution(small, plan, self._importance(share)))
            states[group] = placed(small.state_dict(), self.whole, plan.kept)
        aggregate(self.whole, contributions)
        recalibrate(self.whole, self.calibration)
        self.head = _mean([(head, count) for _, head, count in trained.values()])  # type: ignore[assignment]
        values = []
        for device, group in enumerate(owners.tolist()):
            values.append(values_to_send(states[group], list(self.held[device].values())) + _size(self.head))
            self.held[device][group] = states[group]
        heads = [fit_head(*trained[group][:2], share) for group, share in zip(owners.tolist(), shares, strict=True)]
        return Ran([trained[group][0] for group in owners.tolist()], heads, values)

    def _deployed(self, owners: list[int]) -> list[dict[int, State]]:
        """What devices have before the first step: the sub-models as they were derived."""
        found = {group: variant(self.whole, self.plans[group]) for group in set(owners)}
        states = {group: placed(one.state_dict(), self.whole, self.plans[group].kept) for group, one in found.items()}
        return [{group: states[group]} for group in owners]

    def _as_derived(self, owners: list[int]) -> Ran:
        found = {group: variant(self.whole, self.plans[group]) for group in set(owners)}
        for small in found.values():
            recalibrate(small, self.calibration)
        return Ran([found[group] for group in owners], [self.head] * len(owners), [0] * len(owners))

    def _importance(self, share: Share) -> dict[str, Tensor]:
        if self.selector is not None:
            found: dict[str, Tensor] = self.selector.importance(share.heard)
            return found
        return {layer.name: torch.ones(layer.channels) for layer in self.whole.inner_layers()}  # type: ignore[operator]


def _mean(weighted: Sequence[tuple[nn.Module, int]]) -> nn.Module:
    """A module whose values are the weighted mean of those of several of one kind."""
    total = sum(weight for _, weight in weighted)
    mean = copy.deepcopy(weighted[0][0])
    states = [(module.state_dict(), weight / total) for module, weight in weighted]
    mean.load_state_dict({
        name: sum(state[name] * share for state, share in states) if value.is_floating_point() else value
        for name, value in mean.state_dict().items()
    })  # fmt: skip
    return mean


def _size(head: nn.Linear) -> int:
    return sum(parameter.numel() for parameter in head.parameters())
