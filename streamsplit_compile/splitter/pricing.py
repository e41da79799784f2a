"""Costs of each cut on each target, and the default splitter tables made from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from runtime_edge.errors import UsageError
from runtime_edge.formats import manifest as manifests
from runtime_edge.formats.encoder.bottleneck_info import BottleneckInfo
from runtime_edge.formats.encoder.exit_info import ExitInfo
from runtime_edge.formats.manifest import Cut, Manifest, Parity, TargetCost
from runtime_edge.formats.records.actions import ActionCosts, Encoding, action_name
from runtime_edge.formats.records.table import Reward, SplitterTable
from runtime_edge.formats.wire import MAX_HEADER_BYTES
from runtime_edge.inference.profile import Profile
from streamsplit_compile.cost.cost_model import BlockWork, fft_work, predict
from streamsplit_compile.cost.radios import DEFAULT_LINK, radio_on
from streamsplit_compile.cost.targets import Target, load_target
from streamsplit_compile.splitter.environment import Environment, environment_for
from streamsplit_compile.splitter.table_training import TableOptions, train_table
from streamsplit_compile.splitter.traces import Traces

SERVER_TARGET = "x86-64"
SERVER_OVERHEAD_MS = 3.0
"""Broker, batching and reply on the server, measured on a 2-core machine (docs/benchmarks.md)."""
EXIT_MS = 0.2
"""Fixed time to run a graph as small as an exit on a Raspberry Pi 4, estimated as five times that of an x86-64 core."""
VALUE_US = 1.5
"""Time to code one value of a latent on a Raspberry Pi 4, estimated as 5.5 times that of an x86-64 core."""


def price(
    manifest: Manifest,
    work: Sequence[BlockWork],
    targets: Sequence[Target],
    seed: int,
    progress: Callable[[str, int, int], None],
    link: str = DEFAULT_LINK,
    measured: Profile | None = None,
) -> tuple[Manifest, dict[str, SplitterTable]]:
    """Add costs for each target to the manifest, predicted or measured; returns it and the tables by path.

    A target is priced in float32 with the fastest of the bundle's formats, by the order in the target's file. A device
    computes a front end that the manifest describes by FFT; the server runs every block. Raises UsageError when the
    measurements are of none of these targets, or of other blocks.
    """
    if measured is not None and measured.target not in [target.name for target in targets]:
        raise UsageError(f"the profile is of {measured.target}; the targets are {', '.join(t.name for t in targets)}")
    exact = [name for name in manifest.components[manifest.info.blocks[0]].variants if name.endswith("-fp32")]
    server = [round(server_ms(item), 4) for item in work]
    native = fft_work(manifest.info.front_end)
    on_device = work if native is None else [native, *work[1:]]
    costs: dict[str, TargetCost] = {}
    for target in targets:
        blocks = [predict(item, target) for item in on_device]
        cost = TargetCost(
            variant=next((f"{name}-fp32" for name in target.formats if f"{name}-fp32" in exact), exact[0]),
            threads=target.threads,
            providers=target.providers,
            block_ms=[round(block.ms, 4) for block in blocks],
            block_mj=[round(block.mj, 4) for block in blocks],
            block_peak_bytes=[block.peak_memory_bytes for block in blocks],
            radio_mj_per_kb=radio_on(target, link).send_mj_per_kb.value,
            table=f"tables/{target.name}.json",
        )
        if measured is not None and measured.target == target.name:
            check_blocks(measured, manifest)
            cost = measured_cost(cost, measured)
        costs[target.name] = cost
    info = msgspec.structs.replace(manifest.info, targets=costs, server_block_ms=server)
    metadata = msgspec.structs.replace(manifest.additional_metadata, ssc=info)
    manifest = msgspec.structs.replace(manifest, additional_metadata=metadata)
    tables: dict[str, SplitterTable] = {}
    for index, target in enumerate(targets):
        progress("training splitter tables", index, len(targets))
        tables[costs[target.name].table] = table_for(manifest, target, link, seed, "ssc compile")
    return manifest, tables


def table_for(manifest: Manifest, target: Target, link: str, seed: int, created_by: str) -> SplitterTable:
    """The default table of a priced bundle on one of its targets, with the radio of a link."""
    actions, radio = bundle_actions(manifest, target.name), radio_on(target, link)
    return train_for_bundle(
        manifest,
        manifests.digest(manifests.encode(manifest)),
        environment_for(actions, radio, Reward(), hop_s=hop_seconds(manifest)),
        target.name,
        options=TableOptions(seed=seed, created_by=created_by),
    )


def train_for_bundle(
    manifest: Manifest,
    digest: str,
    environment: Environment,
    target: str,
    traces: Traces | None = None,
    held_out: Traces | None = None,
    options: TableOptions | None = None,
) -> SplitterTable:
    """`train_table` for the bundle whose manifest has this digest."""
    return train_table(
        environment,
        target=target,
        encoder=manifest.info.encoder.id,
        cut_names=[cut.name for cut in manifest.info.cuts],
        bundle=digest,
        traces=traces,
        held_out=held_out,
        options=options,
    )


def hop_seconds(manifest: Manifest) -> float:
    """Seconds from one window to the next."""
    front_end = manifest.info.front_end
    return front_end.hop_samples / front_end.sample_rate


def server_ms(work: BlockWork) -> float:
    """Predicted milliseconds of some work on the server's processor."""
    return predict(work, load_target(SERVER_TARGET)).ms


def bundle_actions(manifest: Manifest, target: str, profile: Profile | None = None) -> list[ActionCosts]:
    """The actions of a compiled bundle on one of its targets, with a profile's times if one is given.

    Raises UsageError when the bundle was not compiled for the target or the profile is of other blocks.
    """
    info = manifest.info
    if target not in info.targets:
        raise UsageError(f"--target {target}: this bundle was compiled for {', '.join(sorted(info.targets))}")
    cost = info.targets[target]
    if profile is not None:
        check_blocks(profile, manifest)
        cost = measured_cost(cost, profile)
    plain = action_costs(info.cuts, cost, info.server_block_ms, info.parity.get(cost.variant))
    macs = whole_macs(manifest)
    actions = []
    for action, size in zip(plain, prefix_memory_mb(manifest, cost), strict=True):
        priced = msgspec.structs.replace(action, memory_mb=size)
        bottleneck = manifest.bottleneck(action.cut)
        answered = [priced, *(width_costs(priced, bottleneck, cost, macs) if bottleneck else ())]
        early = manifest.exit(action.cut)
        exits = [exit_costs(one, early, cost, macs) for one in answered if early]
        # There is no point in a second answer that is worse than the first.
        actions += [*answered, *(one for one in exits if np.mean(one.quality) >= np.mean(one.exit_quality or ()))]
    return actions


def whole_macs(manifest: Manifest) -> int:
    """Multiply-adds of the whole encoder for one window."""
    return sum(manifest.components[block].additional_metadata.ssc.macs for block in manifest.info.blocks)


def bottleneck_ms(bottleneck: BottleneckInfo, cost: TargetCost, macs: int) -> float:
    """Time for a bottleneck's encoder, at the whole encoder's time per multiply-add; the whole encoder has `macs`."""
    return sum(cost.block_ms) * bottleneck.macs / max(macs, 1)


def exit_ms(early: ExitInfo, cost: TargetCost, macs: int) -> float:
    """Time for an exit: as for a bottleneck's encoder, plus EXIT_MS."""
    return EXIT_MS + sum(cost.block_ms) * early.macs / max(macs, 1)


def mj_of(ms: float, cost: TargetCost) -> float:
    """Energy of computing for `ms` at the mean power of the blocks."""
    return ms * sum(cost.block_mj) / max(sum(cost.block_ms), 1e-9)


def check_blocks(profile: Profile, manifest: Manifest) -> None:
    """Raises UsageError if a profile is not of a bundle's blocks."""
    info = manifest.info
    if profile.blocks != info.blocks or profile.encoder != info.encoder.id:
        raise UsageError(
            f"the profile is of {profile.encoder} in {len(profile.blocks)} blocks, not of this bundle, which is "
            f"{info.encoder.id} in {len(info.blocks)}; measure this one"
        )
    for block in info.blocks:
        manifest.variant(block, profile.variant)


def prefix_memory_mb(manifest: Manifest, cost: TargetCost) -> list[float]:
    """Memory of each cut's prefix: the weights of its blocks and the largest activations, MB (1e6 bytes)."""
    weights = [manifest.variant(block, cost.variant).bytes for block in manifest.info.blocks]
    return [
        round((sum(weights[: cut.index]) + max(cost.block_peak_bytes[: cut.index], default=0)) / 1e6, 3)
        for cut in manifest.info.cuts
    ]


def measured_cost(cost: TargetCost, profile: Profile) -> TargetCost:
    """A target's costs with measured times; energy is measured too, or follows from the target's power."""
    energy = profile.block_mj or [
        mj * measured / predicted if predicted else mj
        for mj, measured, predicted in zip(cost.block_mj, profile.block_ms, cost.block_ms, strict=True)
    ]
    return msgspec.structs.replace(
        cost,
        variant=profile.variant,
        threads=profile.threads,
        block_ms=profile.block_ms,
        block_mj=energy,
        provenance="measured",
    )


def action_costs(
    cuts: Sequence[Cut], cost: TargetCost, server_ms: Sequence[float], parity: Parity | None = None
) -> list[ActionCosts]:
    """One action for each cut, with the encoding a device uses there by default.

    Quality is the agreement by uncertainty in the variant's parity if it was measured, else the cut's median agreement.
    """
    actions = []
    for cut in cuts:
        encoding = default_encoding(cut, len(cuts))
        actions.append(
            ActionCosts(
                name=cut.name,
                cut=cut.name,
                encoding=encoding,
                answer="device" if cut.index == len(cuts) - 1 else "server",
                device_ms=sum(cost.block_ms[: cut.index]),
                device_mj=sum(cost.block_mj[: cut.index]),
                bytes=cut.bytes[encoding] + MAX_HEADER_BYTES,
                server_ms=SERVER_OVERHEAD_MS + sum(server_ms[cut.index :]),
                quality=_quality(cut, encoding, parity),
                teaches=cut.index < len(cuts) - 1,
            )
        )
    return actions


def width_costs(plain: ActionCosts, bottleneck: BottleneckInfo, cost: TargetCost, macs: int) -> list[ActionCosts]:
    """One action for each width of a cut's bottleneck, derived from the action that ships its full activation."""
    actions = []
    for width in bottleneck.widths:
        ms = bottleneck_ms(bottleneck, cost, macs) + width.width * bottleneck.positions * VALUE_US / 1000
        near = width.wire.get(cost.variant) or next(iter(width.wire.values()))
        action = msgspec.structs.replace(
            plain,
            name=action_name(plain.cut, width.width),
            encoding="int8",
            width=width.width,
            device_ms=plain.device_ms + ms,
            device_mj=plain.device_mj + mj_of(ms, cost),
            bytes=width.bytes + MAX_HEADER_BYTES,
            quality=tuple(near.by_uncertainty) or (near.cosine_median,),
        )
        actions.append(action)
    return actions


def exit_costs(answered: ActionCosts, early: ExitInfo, cost: TargetCost, macs: int) -> ActionCosts:
    """The action of a cut at which the exit answers before the server does."""
    ms = exit_ms(early, cost, macs)
    near = early.agreement[cost.variant]
    return msgspec.structs.replace(
        answered,
        name=action_name(answered.cut, answered.width, "exit"),
        answer="exit",
        device_ms=answered.device_ms + ms,
        device_mj=answered.device_mj + mj_of(ms, cost),
        exit_quality=tuple(near.by_uncertainty) or (near.cosine_median,),
        memory_mb=round(answered.memory_mb + 4 * early.macs / 1e6, 3),
    )


def _quality(cut: Cut, encoding: str, parity: Parity | None) -> tuple[float, ...]:
    found = None if parity is None else parity.cuts[cut.index].wire.get(encoding)
    return tuple(found.by_uncertainty) if found is not None and found.by_uncertainty else (cut.agreement[encoding],)


def default_encoding(cut: Cut, cuts: int) -> Encoding:
    """PCM for the waveform, float16 for the embedding, int8 between."""
    if cut.index == 0:
        return "pcm16"
    return "float16" if cut.index == cuts - 1 else "int8"
