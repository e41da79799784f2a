"""The figures of `tools.bench_module_adaptation` from the lines that it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.benchmarks import Section

_DRAWS = 2000
_VALUE_BYTES, _SCALE_BYTES, _HEADER_BYTES = 4, 4, 48
_CHANNELS = 40
"""Of the activation at the cut."""
Floats = npt.NDArray[np.float64]
Lines = Sequence[Mapping[str, Any]]


def section(lines: Lines) -> Section:
    """All figures: those of speech with five words are judged, the others stand beside them."""
    found = Section("modules", "Sub-models that adapt", "python -m tools.bench_module_adaptation", part="adaptation")
    main = _arms(lines, "speech_commands", 5)
    for arm in ("ours", "enhanced"):
        if {"none", arm, "averaged"} <= main.keys():
            points, said = difference(main[arm], main["none"])
            what = f"{arm}, speech, 5 of 10 words"
            found.add(f"adaptation_gain.{arm}", points, "at least 5", f"{what}: points over no adaptation: {said}")
            share = np.mean([bytes_down(line) / (_VALUE_BYTES * line["whole_values"]) for line in main[arm]])
            found.add(f"bytes_down_share.{arm}", float(share), "at most 0.25",
                      f"{what}: of the whole encoder's bytes, a device and step")  # fmt: skip
            ratio = np.mean([communication(line) for line in main["averaged"]])
            ratio /= np.mean([communication(line) for line in main[arm]])
            found.add(f"communication_ratio.{arm}", float(ratio), "at least 2.76",
                      f"{what}: bytes of averaging over it, frames up included")  # fmt: skip
    for data, words in sorted({(line["data"], line["words"]) for line in lines}):
        arms = _arms(lines, data, words)
        for name, own in arms.items():
            said = f"right {_mean(own, 'right'):.4f}; among the device's own {_mean(own, 'own'):.4f}"
            if name != "none" and "none" in arms:
                said += f"; points over none {difference(own, arms['none'])[1]}"
            down = np.mean([bytes_down(line) for line in own])
            found.detail(f"{data}, {words} classes, {name}: {len(own)} seeds", f"{said}; {down / 1e3:.0f} kB down")
        for better, worse in (("enhanced", "averaged"), ("enhanced", "uniform"), ("enhanced", "random"),
                              ("enhanced", "l1"), ("ours", "random"), ("ours", "uniform"), ("enhanced", "ours"),
                              ("ours", "averaged"), ("ours", "l1"), ("ours", "head"), ("ours", "none_ours"),
                              ("enhanced", "head"), ("enhanced", "none_enhanced")):  # fmt: skip
            if {better, worse} <= arms.keys():
                said = difference(arms[better], arms[worse])[1]
                found.detail(f"{data}, {words} classes: points of {better} over {worse}", said)
    return found


def difference(better: Lines, worse: Lines, field: str = "right") -> tuple[float, str]:
    """Points between two arms, and the same with the 95 % interval of a paired bootstrap over recordings."""
    gained: dict[int, float] = {}
    times: dict[int, int] = {}
    for a, b in ((a, b) for a in better for b in worse if a["seed"] == b["seed"]):
        for clip, one, other, heard in zip(a["clips"], a[field], b[field], a["heard"], strict=True):
            gained[clip] = gained.get(clip, 0.0) + 100.0 * (one - other)
            times[clip] = times.get(clip, 0) + heard
    sums, counts = np.array(list(gained.values())), np.array(list(times.values()))
    random = np.random.default_rng(0)
    draws = []
    for _ in range(_DRAWS):
        chosen = random.integers(0, len(sums), len(sums))
        draws.append(sums[chosen].sum() / counts[chosen].sum())
    low, high = np.percentile(draws, [2.5, 97.5])
    points = float(sums.sum() / counts.sum())
    return points, f"{points:.1f} ({low:.1f} to {high:.1f})"


def bytes_down(line: Mapping[str, Any]) -> float:
    """Bytes that a device was sent in a step, float32, what it had before the first step aside."""
    return _VALUE_BYTES * float(np.mean(line["values_down"]))


def communication(line: Mapping[str, Any]) -> float:
    """Bytes of a device and step both ways: frames up with int8 activations, values down."""
    frame = line["activation"] + _SCALE_BYTES * _CHANNELS + _HEADER_BYTES
    return bytes_down(line) + frame * float(np.mean(line["windows_up"]))


def _arms(lines: Lines, data: str, words: int) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if (line["data"], line["words"]) == (data, words):
            found.setdefault(line["arm"], []).append(line)
    return found


def _mean(lines: Lines, field: str) -> float:
    return float(sum(sum(line[field]) for line in lines) / sum(sum(line["heard"]) for line in lines))
