"""Measures the device: its size on disk, its memory, and its time for a window besides the model.

    python -m tools.bench_edge [--quick] [--minutes 20]

Everything runs as on a device: pip makes an environment for each extra, `ssc edge run` is a separate process, and a
real broker and server run beside it. The soak plays a file ten times as fast as real time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile

from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.codec import CutCodec
from runtime_edge.formats.wire import encode_frame
from runtime_edge.inference.prefix import Prefix
from runtime_server.harness.ports import free_port
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.bundle.soundscape import soundscape
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder, new_encoder, save_checkpoint
from streamsplit_compile.lowering.artifact_formats import Format
from tools.benchmarks import Section, publish
from tools.edge_size import available, installed_mb, make_environment, torch_mb

ENCODINGS = ("float32", "float16", "int8")
LARGEST_CUT = "stem"
"""The largest of the paper's cuts: 64 x 32 x 25 values after ResNet-18's stem (docs/method.md, section 2)."""
SPEED = 10.0
_SETTLED = 0.5  # share of a soak: memory is judged in its second half
_SAMPLE_S = 1.0
_STAY_AWAKE = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
parent = os.getppid()
while os.getppid() == parent:  # whoever is killed cannot end it
    pass
"""


def measure(work: Path, quick: bool, minutes: float) -> Section:
    """Run every measurement below `work`; returns the section for docs/benchmarks."""
    section = Section("edge", "The device", f"python -m tools.bench_edge --minutes {minutes:g}")
    sound = work / "sound.wav"
    soundfile.write(sound, soundscape(60.0, 16_000, seed=0), 16_000, subtype="PCM_16")
    small, paper = (compiled(work, name) for name in ("mobilenet_v3_small", "resnet18"))
    environments = {extra: make_environment(extra, work / extra) for extra in _extras()}
    with completing_server(work, small) as broker:
        onnx = _soak(environments["edge"], work / "soak-onnx", broker, sound, 60 * minutes)
        _sizes(section, environments)
        section.add("rss_mb", onnx["rss_mb"], "at most 130", "resident memory, MobileNetV3-Small, onnxruntime, MB")
        section.add("soak_growth_mb", onnx["growth_mb"], "at most 2", f"growth in {minutes:g} minutes at {SPEED:g}x")
        section.detail("soak: windows, lost, processor share of one core", onnx["summary"])
        if "edge-tflite-runtime" in environments:
            python = environments["edge-tflite-runtime"]
            tflite = _soak(python, work / "soak-tflite", broker, sound, min(60 * minutes, 120.0))
            section.add("rss_tflite_mb", tflite["rss_mb"], "at most 90", "the same with tflite-runtime")
        overhead = _overhead(work / "overhead-small", broker, sound, quick)
        section.add("overhead_ms", overhead["overhead_ms"], "at most 1.5", "a window without the model, median")
        section.detail("means by thread, the model included, ms", _listed(overhead["threads_ms"]))
        steps = _overhead(work / "overhead-steps", broker, sound, True, "--steps")
        section.detail("medians of its named steps, ms", _listed(steps["steps_ms"]))
        with alone():
            own = _overhead(work / "overhead-alone", broker, sound, quick)
        what = "the same on a processor of its own that does not halt between windows"
        section.add("overhead_alone_ms", own["overhead_ms"], "at most 1.5", what)
    with completing_server(work, paper) as broker:
        shared = _overhead(work / "overhead-shared", broker, sound, quick)
        with alone():
            share = _overhead(work / "overhead-paper", broker, sound, quick)
            model_ms = _model_ms(paper, quick)
        what = "a window without the model / ResNet-18 itself, both as in `overhead_alone_ms`"
        section.add("overhead_share", share["overhead_ms"] / model_ms, "at most 0.1", what)
        parts = f"{model_ms:.2f}; {share['overhead_ms']:.2f}; {shared['overhead_ms']:.2f}"
        section.detail("ResNet-18 on one thread; a window besides, alone; as in `overhead_ms`, ms", parts)
    _codec(section, work)
    return section


def _extras() -> list[str]:
    return [extra for extra in ("edge", "edge-tflite-runtime") if available(extra)]


def _sizes(section: Section, environments: dict[str, Path]) -> None:
    goals = {"edge": ("install_mb", "at most 160"), "edge-tflite-runtime": ("install_tflite_runtime_mb", "at most 110")}
    for extra, python in environments.items():
        name, goal = goals[extra]
        section.add(name, installed_mb(python), goal, f"site-packages with the extra `{extra}`, after a run, du -m")
    section.detail("torch alone, du -m", f"{torch_mb():.0f}")


def compiled(
    work: Path,
    name: str,
    cuts: str = "auto",
    formats: Sequence[Format] = ("onnx", "tflite"),
    calibrate: Path | None = None,
) -> Bundle:
    """Make a new registered encoder below `work`: `encoder.pt`, with its bundle beside it. If `calibrate` names
    recordings, its cuts have bottlenecks.
    """
    directory = work / f"{name}-{cuts}"
    directory.mkdir()
    module, config = new_encoder(name)
    save_checkpoint(name, config, module, directory / "encoder.pt")
    options = CompileOptions([load_target("x86-64")], cuts, calibration_windows=4, formats=formats)
    if calibrate is not None:
        options = CompileOptions([load_target("x86-64")], cuts, calibrate=calibrate, formats=formats)
    compile_encoder(load_encoder(directory / "encoder.pt"), options, directory / "bundle")
    return open_bundle(directory / "bundle")


@contextlib.contextmanager
def completing_server(work: Path, bundle: Bundle) -> Iterator[str]:
    """Run a server that completes a bundle's frames and does not train; yields its broker's address."""
    port = free_port()
    root = bundle.path.parent
    command = [_ssc(), "server", "run", root / "encoder.pt", bundle.path, "--state", root / "server", "--port", port]
    log = root / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*map(str, command), "--no-training", "-v"], stdout=output, stderr=output, env=_env()
        )
    try:
        deadline = time.monotonic() + 120
        while "serving generation" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server does not start: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _soak(python: Path, state: Path, broker: str, sound: Path, seconds: float) -> dict[str, Any]:
    """Run a device from its own environment for `seconds`; returns its settled memory and the growth, MB (1e6)."""
    report = state.with_suffix(".json")
    command = [
        python.with_name("ssc"), "edge", "run", "--broker", broker, "--source", sound, "--target", "x86-64",
        "--state", state, "--device", state.name, "--loop", "--speed", SPEED, "--threads", 1, "--report", report,
    ]  # fmt: skip
    log = state.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen([*map(str, command)], stdout=output, stderr=output, env=_env(), cwd=log.parent)
    samples = []
    try:
        watched = psutil.Process(process.pid)
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            if process.poll() is not None:
                raise SystemExit(f"the device has ended: {log.read_text()[-2000:]}")
            samples.append(watched.memory_info().rss / 1e6)
            time.sleep(_SAMPLE_S)
        cpu = sum(watched.cpu_times()[:2]) / seconds
    finally:
        process.terminate()
        process.wait(60)
    settled = samples[int(len(samples) * _SETTLED) :]
    fifth = max(1, len(settled) // 5)
    found = json.loads(report.read_text())
    return {
        "rss_mb": statistics.median(settled),
        "growth_mb": max(0.0, statistics.median(settled[-fifth:]) - statistics.median(settled[:fifth])),
        "summary": f"{found['windows_captured']}, {found['windows_lost']}, {cpu:.0%}",
    }


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Move all child processes to the last processor, leave the others to processes started from now on, and let no
    processor halt: a halted virtual one loses its caches to its neighbours. The processes that keep them awake give way
    to any other process.
    """
    *first, last = sorted(os.sched_getaffinity(0))
    for process in psutil.Process().children(recursive=True):
        for thread in process.threads():
            with contextlib.suppress(ProcessLookupError):  # the process has ended
                os.sched_setaffinity(thread.id, {last})
    os.sched_setaffinity(0, first or {last})
    awake = [subprocess.Popen([sys.executable, "-c", _STAY_AWAKE, str(processor)]) for processor in (*first, last)]
    try:
        yield
    finally:
        for process in awake:
            process.kill()
            process.wait()
        os.sched_setaffinity(0, {*first, last})


def _overhead(state: Path, broker: str, sound: Path, quick: bool, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tools.edge_overhead", "--broker", broker, "--source", sound, "--state", state]
    windows = 200 if quick else 1000
    done = subprocess.run(
        [*map(str, command), "--windows", str(windows), "--speed", str(SPEED), *options],
        capture_output=True, text=True, check=False, env=_env(),
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"tools.edge_overhead: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _model_ms(bundle: Bundle, quick: bool) -> float:
    """Median processor time of the whole encoder on one thread, ms."""
    prefix = Prefix(bundle)
    window = np.random.default_rng(0).normal(0, 0.1, prefix.buffers[0].shape[1]).astype(np.float32)
    times = []
    for _ in range(20 if quick else 100):
        started = time.thread_time()
        prefix.embed(window)
        times.append((time.thread_time() - started) * 1e3)
    return statistics.median(times)


def _codec(section: Section, work: Path) -> None:
    """Measure the milliseconds from the activation at the paper encoder's largest cut to its frame."""
    bundle = compiled(work, "resnet18", LARGEST_CUT)
    cut, prefix = bundle.manifest.cut_named(LARGEST_CUT), Prefix(bundle)
    sound = soundscape(60.0, 16_000, seed=1)
    for encoding in ENCODINGS:
        codec, times, sizes = CutCodec(cut, encoding), [], []
        for start in range(0, len(sound) - 16_000, 16_000):
            prefix.start(sound[start : start + 16_000])
            activation = prefix.advance(cut.index)
            for _ in range(5):
                started = time.perf_counter()
                payload, compressed = codec.encode(activation)
                frame = encode_frame(0, 0, 1, cut.index, encoding, compressed, 0.5, payload)
                times.append((time.perf_counter() - started) * 1e3)
            sizes.append(len(frame))
        what = f"activation to frame, {cut.shape[1:]}, {codec.raw_bytes:,} bytes to {statistics.median(sizes):,.0f}"
        section.add(f"encode_{encoding}_ms", statistics.median(times), "at most 1", what)


def _ssc() -> Path:
    return Path(sys.executable).with_name("ssc")


def _env() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def _listed(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in sorted(numbers.items(), key=lambda item: -item[1]))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer windows, and a soak of two minutes")
    parser.add_argument("--minutes", type=float, help="length of the soak [default: 20, with --quick 2]")
    options = parser.parse_args(arguments)
    minutes = options.minutes or (2.0 if options.quick else 20.0)
    with tempfile.TemporaryDirectory(prefix="ssc-bench-") as work:
        section = measure(Path(work), options.quick, minutes)
    return publish(section)


if __name__ == "__main__":
    main()
