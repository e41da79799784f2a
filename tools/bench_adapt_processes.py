"""Plays cells of `tools.bench_adapt` to a real server and a real device, beside the library on the same windows.

    python -m tools.bench_adapt_processes encoder.pt head.json larger.pt --audio recordings/ [--publish]

The files are those of `tools.bench_adapt`. The device hears the same windows, one after the other, at eight times
real time. It answers each and sends the most uncertain 44 % as Opus at 24 kbit/s; the server adapts it
(`--adapt joint`), and each adaptation is signed, verified and swapped in. Only the device's own answers count, as in
the library. What differs: every eighth window judges and trains nothing, an adaptation has to pass the judge, and
adaptations arrive while the stream goes on. About seven minutes a cell.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.records.head import Head, read_head
from runtime_server.broker.hub import Hub
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder
from tools.adaptation_page import PROCESSES
from tools.bench_adapt import KBPS, SHARE, AdaptBench, Cell
from tools.bench_server import ServerProcess
from tools.judged_clips import Bools, right_clips

CELLS = ("pink noise", "low-pass")
_SPEED, _RATE_HZ = 8.0, 16_000
_LEAST_S = 5.0
_LIMIT_S = 1800.0


def compiled(encoder: Path, work: Path) -> Bundle:
    """The encoder, adaptable, for windows that follow each other without overlap."""
    options = CompileOptions([load_target("rpi4")], cuts="features.7", adaptable=True, hop_share=1.0)
    return compile_encoder(load_encoder(encoder), options, work / "bundle")


def answered(bench: AdaptBench, head: Head, lines: Sequence[dict[str, Any]], places: Sequence[int]) -> Bools:
    """Whether each clip is labelled correctly (clips,) by the device's own answers, in the order of the stream.

    Raises SystemExit if a window has no answer.
    """
    own = {line["window"]: line["embedding"] for line in lines if line["answer"] == "device"}
    if sorted(own) != list(range(len(places))):
        raise SystemExit(f"the device answered {len(own)} of {len(places)} windows")
    scores = np.zeros((len(bench.owners), len(head.labels)))
    embeddings = np.array([own[index] for index in range(len(places))], np.float32)
    logits = torch.from_numpy(np.asarray(head.logits(embeddings))) / head.temperature
    scores[list(places)] = logits.softmax(1).numpy()
    return right_clips(scores, bench.owners, bench.truth)


async def played(files: argparse.Namespace, bundle: Bundle, sound: Path, work: Path, adapts: bool) -> dict[str, Any]:
    """Results and accounting of a device that hears a sound, and what the server says of its adaptations."""
    options: list[object] = ["--larger", files.larger, "--calibrate", files.audio]
    options += ["--larger-head", files.larger.with_suffix(".head.json")]
    options += ["--adapt", "joint", "--adapt-least-s", _LEAST_S] if adapts else []
    server = ServerProcess(work, files.encoder, bundle.path, options=options, ready_s=_LIMIT_S)
    async with server.running(), Hub(server.url, "bench") as hub:
        key = minisign.read_secret_key(work / "server" / "signing.key")
        await hub.put_head(read_head(files.head), key, "rpi4", None)
        results, report = work / "results.jsonl", work / "report.json"
        run = [Path(sys.executable).with_name("ssc"), "edge", "run", "--broker", server.url, "--source", sound]
        run += ["--device", "pi-1", "--state", work / "device", "--results", results, "--report", report, "-q"]
        run += [
            "--cascade",
            SHARE,
            "--audio-format",
            "opus",
            "--opus-kbps",
            KBPS,
            "--speed",
            _SPEED,
            "--revise-above",
            1,
        ]
        with (work / "device.log").open("wb") as log:
            device = await asyncio.create_subprocess_exec(*map(str, run), stdout=log, stderr=subprocess.STDOUT)
            if await asyncio.wait_for(device.wait(), _LIMIT_S):
                raise SystemExit((work / "device.log").read_text()[-2000:])
        lines = [json.loads(line) for line in results.read_text().splitlines()]
        status = await hub.server_status()
    return {"lines": lines, "report": json.loads(report.read_text()), "adaptation": status.get("adaptation")}


def compare(bench: AdaptBench, files: argparse.Namespace, bundle: Bundle, cell: Cell, work: Path) -> dict[str, Any]:
    """One cell by processes and by the library."""
    places, windows = bench.stream(cell)
    sound = work / "stream.wav"
    soundfile.write(sound, windows[places].reshape(-1), _RATE_HZ, subtype="FLOAT")
    found = asyncio.run(played(files, bundle, sound, work, cell.arm == "joint"))
    right = answered(bench, read_head(files.head), found["lines"], places)
    library = bench.run(cell)
    report = found["report"]
    told = {"cell": vars(cell), "processes": float(right.mean()), "library": float(library.right.mean())}
    told |= {
        "same": float((right == library.right).mean()),
        "sent": report["share_shipped"],
        "library_sent": library.shipped,
    }
    told |= {"windows": report["windows_captured"], "lost": report["windows_lost"], "updates": library.updates}
    told["own_head"] = True
    counts: Counter[str] = Counter(line["answer"] for line in found["lines"])
    return told | {"answers": dict(counts), "adaptation": found["adaptation"]}


def main() -> None:
    """Play two cells, each with and without adaptation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("head", type=Path)
    parser.add_argument("larger", type=Path)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="Forty recordings, for a trial; not to be published.")
    parser.add_argument("--publish", action="store_true", help=f"Write docs/{PROCESSES.name}.")
    files = parser.parse_args()
    torch.set_num_threads(1)
    bench, told = AdaptBench(files.encoder, files.head, files.larger, files.audio, 40 if files.quick else None), []
    with tempfile.TemporaryDirectory(prefix="ssc-bench-") as directory:
        work = Path(directory)
        bundle = compiled(files.encoder, work)
        for kind in CELLS:
            for arm in ("unadapted", "joint"):
                (own := work / f"{kind} {arm}").mkdir()
                told.append(compare(bench, files, bundle, Cell(kind, 5, "shuffled", 0, arm), own))
                print(json.dumps(told[-1]), flush=True)
    if files.publish and not files.quick:
        PROCESSES.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
