"""The cost of each layer of an encoder on a target, by the number of groups that stay, and that of everything else.

What a layer works is a constant plus a share for each channel, so counting the whole encoder and one with half of the
channels gives it for any number. The cost model then turns work into time and memory.
"""

from __future__ import annotations

import dataclasses
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


@dataclass(frozen=True)
class Prices:
    """Work of one window, whatever the target."""

    fixed: tuple[BlockWork, ...]
    """Everything but the layers: first the front end, as a device computes it."""
    layers: dict[str, tuple[BlockWork, ...]]
    """(groups + 1,) by layer: with 0, 1, ... groups."""

    def of(self, target: Target, precision: str = "fp32") -> tuple[Cost, dict[str, list[Cost]]]:
        """The cost of everything else, and that of each layer. Raises UsageError for an unknown precision."""
        fixed = [_cost(work, target, precision) for work in self.fixed]
        rest = Cost(
            sum(cost.ms for cost in fixed) + target.launch.session_us.value / 1000,
            sum(cost.weight_bytes for cost in fixed),
            max(cost.peak_bytes for cost in fixed),
        )
        return rest, {name: [_cost(work, target, precision) for work in works] for name, works in self.layers.items()}


def price(encoder: LoadedEncoder, module: nn.Module) -> Prices:
    """Count the work of `encoder`, whose torch module is `module`. Raises UsageError if it has no layers."""
    layers = layers_of(module, encoder.id)
    halves = {layer.name: range(-(-layer.channels // 2)) for layer in layers}
    fixed, whole = _works(encoder.graph, layers, encoder.log_mel[0] if encoder.log_mel else None)
    half = from_module(encoder.id, {}, slice_encoder(module, halves), encoder.sample_rate)
    _, narrow = _works(half.graph, layers, None)
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
    )


def _counts(layer: Layer) -> list[int]:
    """Channels of 0, 1, ... groups."""
    return [0, *(group.stop for group in groups_of(layer))]


def _works(
    graph: EncoderGraph, layers: tuple[Layer, ...], image: str | None
) -> tuple[list[BlockWork], dict[str, BlockWork]]:
    """The work of everything between the layers, that up to the cut `image` first, and of each layer by its name."""
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
        if place in (0, last) or candidate.name in names | {image} or outside[place + 1].name in names
    ]
    works = [count_work(segment) for segment in split(graph, ends)]
    fixed, found = [], {}
    for end, work in zip(ends[1:], works, strict=True):
        if end.name in names:
            found[end.name] = work
        else:
            fixed.append(work)
    return fixed, found


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
