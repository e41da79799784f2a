"""Predicted energy of a device above idle, from its target's figures, because devices have no meter."""

from __future__ import annotations

from runtime_edge.formats.manifest import BundleInfo
from runtime_edge.formats.records.table import LOCAL
from runtime_server.telemetry.device_view import DeviceView


def predicted_energy(view: DeviceView, info: BundleInfo) -> dict[str, float] | None:
    """MJ a window above idle: of the `blocks` that ran on the device, and of its `radio` if it reports what it sent.

    `info` is that of the bundle released by the server; None if it has no costs for this target, or no window is known.
    The radio is the one that the bundle was compiled for (`ssc compile --link`).
    """
    cost = info.targets.get(view.target)
    names = {cut.name: cut.index for cut in info.cuts} | {LOCAL: len(cost.block_mj) if cost else 0}
    if cost is None or not view.cuts or not view.cuts.keys() <= names.keys():
        return None
    by_cut = {cut: sum(cost.block_mj[: names[cut]]) for cut in view.cuts}
    begun = sum(share * by_cut[cut] for cut, share in view.cuts.items())
    left = sum(share * (sum(cost.block_mj) - by_cut[cut]) for cut, share in view.cuts.items())
    shipped = 1.0 - view.cuts.get(LOCAL, 0.0)
    late = min(view.answers.get("fallback", 0.0) / shipped, 1.0) if shipped > 0 else 0.0
    found = {"blocks": round(begun + late * left, 3)}
    if view.hour.seconds > 0:
        hop_s = info.front_end.hop_samples / info.front_end.sample_rate
        per_s = (view.hour.up + view.hour.down) / view.hour.seconds
        found["radio"] = round(per_s / 1000 * cost.radio_mj_per_kb * hop_s, 3)
    return found
