"""The cost of each layer of an encoder on a target, by the number of groups that stay, and that of everything else.

What a layer works is a constant plus a share for each channel, so counting the whole encoder and one with half of the
channels gives it for any number. The cost model then turns work into time and memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from runtime_edge.formats.manifest import FrontEndInfo
from streamsplit_compile.cost.cost_model import BlockWork, count_work, fft_work, predict
from streamsplit_compile.cost.targets import Target
from streamsplit_compile.encoder.encoders import LoadedEncoder, from_module
from streamsplit_compile.encoder.graph import EncoderGraph
from streamsplit_compile.encoder.segment import split
from streamsplit_compile.modules.derivation import Cost
from streamsplit_compile.modules.layers import Layer, groups_of, layers_of
from streamsplit_compile.modules.slicing import slice_encoder

_NOTHING = BlockWork(0, 0, 0, 0, 0)


Costs = tuple[Cost, dict[str, list[Cost]]]
"""The cost of everything but the layers, and of each layer with 0, 1, ... groups."""


@dataclass(frozen=True)
class Prices:
    """Work of one window, whatever the target."""

    fixed: tuple[BlockWork, ...]
    """Everything but the layers: first the front end, as a device computes it."""
    layers: dict[str, tuple[BlockWork, ...]]
    """(groups + 1,) by layer: with 0, 1, ... groups."""
    ends: tuple[str, ...]
    """Where each part ends, in order: the name of a layer, or of a cut for the others, which are `fixed`."""

    def of(self, target: Target, precision: str = "fp32") -> Costs:
        """The cost of everything else, and that of each layer. Raises UsageError for an unknown precision."""
        rest, layers = self._predicted(target, precision, {})
        return dataclasses.replace(rest, ms=rest.ms + target.launch.session_us.value / 1000), layers

    def measured(
        self, target: Target, cuts: Sequence[str], block_ms: Sequence[float], precision: str = "fp32"
    ) -> Costs:
        """The same with measured times of blocks, (blocks,) ms, that end at the cuts (blocks,), the last one included.

        What was measured of a block is shared out to its parts, and to their groups, as the target's model predicts.
        Blocks that end inside a layer count together. `price` must know the cuts.
        """
        _, layers = self._predicted(target, precision, {})
        factors: dict[str, float] = {}
        unit, predicted, place = list[str](), 0.0, 0
        others = iter(_cost(work, target, precision).ms for work in self.fixed)
        for end in self.ends:
            unit.append(end)
            predicted += layers[end][-1].ms if end in layers else next(others)
            if end in cuts:
                upto = cuts.index(end) + 1
                factors |= dict.fromkeys(unit, sum(block_ms[place:upto]) / max(predicted, 1e-9))
                unit, predicted, place = [], 0.0, upto
        return self._predicted(target, precision, factors)

    def _predicted(self, target: Target, precision: str, factors: Mapping[str, float]) -> Costs:
        """Costs whose times are multiplied by the factors, by name of a part's end; 1 by default."""
        others = (end for end in self.ends if end not in self.layers)
        fixed = [
            _times(_cost(work, target, precision), factors.get(end, 1.0))
            for work, end in zip(self.fixed, others, strict=True)
        ]
        rest = Cost(
            sum(cost.ms for cost in fixed),
            sum(cost.weight_bytes for cost in fixed),
            max(cost.peak_bytes for cost in fixed),
        )
        return rest, {
            name: [_times(_cost(work, target, precision), factors.get(name, 1.0)) for work in works]
            for name, works in self.layers.items()
        }


def price(encoder: LoadedEncoder, module: nn.Module, cuts: Collection[str] = ()) -> Prices:
    """Count the work of `encoder`, whose torch module is `module`; parts end at the named cuts too, outside of layers.

    Raises UsageError if it has no layers.
    """
    layers = layers_of(module, encoder.id)
    halves = {layer.name: range(-(-layer.channels // 2)) for layer in layers}
    fixed, whole, ends = _works(encoder.graph, layers, {*cuts, *(encoder.log_mel or ())[:1]})
    half = from_module(encoder.id, {}, slice_encoder(module, halves), encoder.sample_rate)
    _, narrow, _ = _works(half.graph, layers, set())
    info = FrontEndInfo(
        sample_rate=encoder.sample_rate,
        window_samples=encoder.window_samples,
        hop_samples=int(encoder.front_end.get("hop_samples", encoder.window_samples // 2)),
        details={},
        log_mel=encoder.log_mel[1] if encoder.log_mel else None,
    )
    native = fft_work(info)
    return Prices(
        tuple(fixed if native is None else [native, *fixed[1:]]),
        {
            layer.name: tuple(
                _between(whole[layer.name], narrow[layer.name], layer.channels, len(halves[layer.name]), count)
                for count in _counts(layer)
            )
            for layer in layers
        },
        ends,
    )


def _times(cost: Cost, factor: float) -> Cost:
    return dataclasses.replace(cost, ms=factor * cost.ms)


def _counts(layer: Layer) -> list[int]:
    """Channels of 0, 1, ... groups."""
    return [0, *(group.stop for group in groups_of(layer))]


def _works(
    graph: EncoderGraph, layers: tuple[Layer, ...], cuts: set[str]
) -> tuple[list[BlockWork], dict[str, BlockWork], tuple[str, ...]]:
    """The work of everything between the layers and cuts, and of each layer by its name; and where each part ends."""
    names = {layer.name for layer in layers}
    outside = [
        candidate
        for candidate in graph.candidates
        if candidate.boundary and not any(candidate.name.startswith(f"{name}.") for name in names)
    ]
    last = len(outside) - 1
    ends = [
        candidate
        for place, candidate in enumerate(outside)
        if place in (0, last) or candidate.name in names | cuts or outside[place + 1].name in names
    ]
    works = [count_work(segment) for segment in split(graph, ends)]
    fixed, found = [], {}
    for end, work in zip(ends[1:], works, strict=True):
        if end.name in names:
            found[end.name] = work
        else:
            fixed.append(work)
    return fixed, found, tuple(end.name for end in ends[1:])


def _between(whole: BlockWork, half: BlockWork, channels: int, halved: int, count: int) -> BlockWork:
    """The work with `count` channels, from that with all and that with `halved`; nothing without any."""
    if count == 0 or channels == halved:
        return whole if count else _NOTHING
    share = (count - channels) / (channels - halved)
    values = {
        field.name: getattr(whole, field.name) + share * (getattr(whole, field.name) - getattr(half, field.name))
        for field in dataclasses.fields(BlockWork)
        if field.name != "serial"
    }
    return BlockWork(**{name: max(0, round(value)) for name, value in values.items()})


def _cost(work: BlockWork, target: Target, precision: str) -> Cost:
    """The cost of a part of a block: without the time to start a block."""
    if not work.kernels:
        return Cost(0.0, 0.0, 0.0)
    found = predict(work, target, precision)
    weights = predict(dataclasses.replace(work, peak_activation_bytes=0), target, precision).peak_memory_bytes
    ms = found.ms - target.launch.session_us.value / 1000
    return Cost(ms, float(weights), float(found.peak_memory_bytes - weights))
