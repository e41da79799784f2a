"""Compiles public encoder families and writes docs/encoders.md.

python -m tools.encoders_table --work work/                     all without a result in work/; then the page
python -m tools.encoders_table --work work/ --only DAC,SEW      these again

Each is compiled in a separate process with limits on processor time and memory. An interrupted run can be continued.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "encoders.md"
FAMILY_SECONDS = 600
FAMILY_BYTES = 12 << 30

HEAD = """# Encoders that were tried

`python -m tools.encoders_table` compiled each encoder with `ssc compile`'s defaults (`--cuts auto`, ONNX in float32).
They are small definitions of our own or models of the `transformers` library, with random weights. *cuts* are those
that `auto` kept between the waveform and the embedding; *error* is the largest error of the embedding over the float32
wire, at the worst cut; *seconds* are processor time; *smallest wire* is the smallest int8 payload of those cuts, as a
share of the same window as PCM16.

"""
TAIL = """
## Not supported

- **State between windows** (streaming Conformers, causal codecs with a cache, `register_buffer` values that forward()
  changes): a window is computed from its own samples only, so that the server can complete windows in any order, and
  a lost frame loses only one window. An encoder that changes a buffer is refused.
- **Several inputs** (text and audio, lengths, masks): wrap the encoder so that it takes only the waveform.
- **Control flow that depends on values** (`if` on a tensor, sizes that depend on the waveform, search, sampling): there
  is no single graph to cut. Compute both branches with `torch.where`, and use fixed sizes and no random numbers.
- **Recurrent layers** (LSTM, GRU) compile, but there is no cut inside them: the hidden state and the sequence cross
  together. Layers stacked in one module (`nn.LSTM(..., num_layers=3)`) are one piece; write them as several modules to
  cut between. TFLite unrolls them, which makes large files for long sequences. `nn.LSTM` with `proj_size` is refused:
  torch.onnx drops the projection, which the check of the cuts detects.
- **Operators that the format does not have** (`torch.cdist`, `median`, `grid_sample`, singular values, `torch.vmap`,
  FlexAttention, products of complex numbers by `einsum`): the error names the operator and the line; use other
  operators. For weights that `parametrizations.orthogonal` computes, call `parametrize.remove_parametrizations` first.
- **Modules that cannot be traced** (`torch.jit.script`, dynamically quantised layers, lazy modules that have not run):
  give the plain module with its weights; `--precision int8` quantises.
"""


def main() -> int:
    """Compile the missing families and write the page; returns 1 if one ended in a traceback."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory of results")
    parser.add_argument("--only", help="names of families, with commas between: compiled again")
    parser.add_argument("--seconds", type=float, default=90 * 60, help="begin no other family after so long")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(compile_one(given.one, given.work)))
        return 0
    from tools.families.public import FAMILIES

    given.work.mkdir(parents=True, exist_ok=True)
    names = given.only.split(",") if given.only else list(FAMILIES)
    deadline = time.monotonic() + given.seconds
    for name in names:
        path = given.work / f"{_slug(name)}.json"
        if path.exists() and not given.only:
            continue
        if time.monotonic() > deadline:
            print("the time is over; run again to go on")
            break
        path.write_text(json.dumps(_in_process(name, given.work)) + "\n")
        print(f"{name}: {path.read_text().strip()}", flush=True)
        PAGE.write_text(page(_results(FAMILIES, given.work)))
    results = _results(FAMILIES, given.work)
    PAGE.write_text(page(results))
    return 1 if any("Traceback" in str(result) for result in results.values()) else 0


def _results(names: Iterable[str], work: Path) -> dict[str, dict[str, Any]]:
    """The results so far, by family."""
    paths = {name: work / f"{_slug(name)}.json" for name in names}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def _in_process(name: str, work: Path) -> dict[str, Any]:
    """Compile one family in a separate process; returns its result."""
    command = [sys.executable, "-m", "tools.encoders_table", "--work", str(work), "--one", name]

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (FAMILY_BYTES, FAMILY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (FAMILY_SECONDS, FAMILY_SECONDS + 5))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=bound)
    if done.returncode == -signal.SIGXCPU:
        return {"refused": f"not done after {FAMILY_SECONDS} s"}
    if done.returncode:
        return {"refused": done.stderr.strip()[-400:] or f"ended with {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def compile_one(name: str, work: Path) -> dict[str, Any]:
    """Compile one family in this process."""
    import shutil

    import torch

    from runtime_edge.errors import SscError
    from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
    from streamsplit_compile.cost.targets import load_target
    from streamsplit_compile.encoder.encoders import from_module
    from tools.families.public import FAMILIES, settled

    torch.manual_seed(0)
    out = work / f"{_slug(name)}.bundle"
    notices: list[str] = []
    began = time.process_time()
    try:
        module = settled(FAMILIES[name]().eval())
        parameters = sum(value.numel() for value in module.parameters())
        encoder = from_module(name, {}, module, None)
        bundle = compile_encoder(encoder, CompileOptions([load_target("rpi4")]), out, notice=notices.append)
    except SscError as exc:
        return {"refused": str(exc)}
    info = bundle.manifest.info
    result = {
        "parameters": parameters,
        "candidates": len(encoder.graph.candidates),
        "cuts": [[cut.name, cut.bytes["int8"]] for cut in info.cuts[1:-1]],
        "audio": 2 * info.cuts[0].values,
        "error": max(info.parity["onnx-fp32"].max_abs_error),
        "seconds": round(time.process_time() - began, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "notices": notices,
    }
    shutil.rmtree(out)
    out.with_suffix(".bundle.html").unlink(missing_ok=True)
    return result


def page(results: dict[str, dict[str, Any]]) -> str:
    """The Markdown page."""
    rows = [
        "| family | parameters | cuts | error | seconds | peak memory | smallest wire |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    rows += [_row(name, result) for name, result in sorted(results.items(), key=lambda item: item[0].lower())]
    compiled = sum("refused" not in result for result in results.values())
    machine = f"{compiled} of {len(results)} compile. Seconds and memory: {platform.machine()}, {os.cpu_count()} cores."
    return HEAD + "\n".join(rows) + f"\n\n{machine}\n" + TAIL


def _row(name: str, result: dict[str, Any]) -> str:
    if "refused" in result:
        return f"| {name} | | {_cell(result['refused'])} | | | | |"
    cuts = ", ".join(f"`{cut}`" for cut, _ in result["cuts"]) or f"none{_why_none(result['notices'])}"
    smallest = min((size for _, size in result["cuts"]), default=None)
    wire = "" if smallest is None else f"{smallest / result['audio']:.0%}"
    return (
        f"| {name} | {result['parameters'] / 1e6:.1f} M | {cuts} | {result['error']:.0e} | {result['seconds']:.0f} | "
        f"{result['peak_mb']} MB | {wire} |"
    )


def _why_none(notices: list[str]) -> str:
    """The compiler's reason for not cutting, in brackets."""
    reasons = [match[1] for line in notices if (match := re.match(r"no cut is worth shipping: ([^;]+)", line))]
    return f" ({_cell(reasons[0])})" if reasons else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower())


if __name__ == "__main__":
    sys.exit(main())
