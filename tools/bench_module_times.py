"""Measures what sub-models cost in accuracy at half of the measured time, rather than at half of the work.

    python -m tools.bench_module_times mobilenet=encoder.pt --audio recordings/ [--every 3] [--no-publish]

Everything behind the front end runs in ONNX Runtime, a window at a time on one thread, in turn with the whole encoder;
times are the least of 150 runs. The share of the multiply-adds is found by bisection at which the time is half of the
whole encoder's: for the programme's choice (`derived`) and for the first channels of each layer (`uniform`), each for
itself, so that both take as long. Both then train for 100 steps without labels, and the head beside the encoder judges
recordings of fold 5, for devices that hear 2 or 5 classes (`tools.bench_modules`). Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor, nn

from streamsplit_compile.lowering.onnx_lowering import INPUT, keep_graph
from streamsplit_compile.modules.imitation import imitate
from streamsplit_compile.modules.ranking import embeddings_of, study
from streamsplit_compile.modules.slicing import slice_encoder
from streamsplit_compile.modules.submodels import submodel
from tools.bench_modules import (
    DEVICES,
    HALF,
    IMITATED,
    STEPS,
    STUDIED,
    Kept,
    ModulesBench,
    device_classes,
    difference,
    even,
)
from tools.benchmarks import Section, publish, show

SEARCHES, RUNS, CLOSE = 6, 150, 0.01
"""Shares of the work that are tried at most, runs of each, and the share of the time that is close enough."""


def session(encoder: nn.Module, image: Tensor) -> Callable[[], Any]:
    """A call that runs an encoder on one image (1, 1, mels, frames) in ONNX Runtime."""
    graph = torch.export.export(encoder, (image,)).module()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    made = onnxruntime.InferenceSession(
        keep_graph(graph, tuple(image.shape), ()), options, providers=["CPUExecutionProvider"]
    )
    return lambda: made.run(None, {INPUT: image.numpy()})


def ratio_of(run: Callable[[], Any], whole: Callable[[], Any], runs: int = RUNS) -> float:
    """The least of one call's times over the least of another's, which take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for call, own in zip((run, whole), times, strict=True):
            began = time.perf_counter()
            call()
            own.append(time.perf_counter() - began)
    return min(times[0]) / min(times[1])


def at_half(share_of_time: Callable[[float], float]) -> tuple[float, float]:
    """The largest share of the work found at which the time is at most half, and that time, by bisection."""
    low, high, best = 0.05, 0.6, (0.05, float("nan"))
    for _ in range(SEARCHES):
        share = (low + high) / 2
        taken = share_of_time(share)
        if taken <= HALF:
            low, best = share, (share, taken)
        else:
            high = share
        if abs(taken - HALF) <= CLOSE and taken <= HALF:
            break
    return best


def measure(name: str, bench: ModulesBench, section: Section) -> None:
    """All figures of one encoder."""
    windows = bench.balanced(STUDIED)
    known = study(bench.encoder, windows)
    first = {one.layer.name: -np.arange(len(one.importance)) for one in known.layers}
    choices: dict[str, Callable[[float], Kept]] = {
        "derived": lambda share: bench.derived(known, share),
        "uniform": lambda share: even(known, share, first),
    }
    image, lessons = bench.judged.images[:1].float(), bench.balanced(IMITATED)
    whole_call, taught = session(bench.encoder, image), embeddings_of(bench.encoder, lessons)
    found = {}
    for arm, choice in choices.items():
        share, taken = at_half(
            lambda share, choice=choice: ratio_of(  # type: ignore[misc]
                session(slice_encoder(bench.encoder, choice(share)), image), whole_call
            )
        )
        small = submodel(bench.encoder, known, choice(share), windows)
        untrained = bench.right_of_all(embeddings_of(small, bench.judged.images.float()))
        imitate(small, lessons, taught, STEPS)
        found[arm] = embeddings_of(small, bench.judged.images.float())
        right = bench.right_of_all(found[arm])
        said = f"{share:.2f}; {taken:.2f}; {untrained.mean():.4f}; {right.mean():.4f} of {len(right)}"
        section.detail(f"{name}, {arm}: share of the work; of the time; right; right once trained", said)
        print(name, arm, said, flush=True)
    for classes in (2, 5):
        add_devices(section, name, classes, bench, found)


def add_devices(section: Section, name: str, classes: int, bench: ModulesBench, found: dict[str, Tensor]) -> None:
    """The figures of devices that hear so many classes of one data set."""
    right: dict[str, list[npt.NDArray[np.bool_]]] = {}
    for own in device_classes(bench, classes):
        clips = np.isin(bench.judged.labels, own)
        for arm, embeddings in {"whole": bench.whole, **found}.items():
            right.setdefault(arm, []).append(bench.right(embeddings, own)[clips])
    flat = {arm: np.concatenate(values).astype(float) for arm, values in right.items()}
    where = f"{name} at half of the measured time, {2 * DEVICES} devices of {classes} classes, trained"
    lost, said = difference(flat["whole"], flat["derived"])
    gain, gained = difference(flat["derived"], flat["uniform"])
    section.add(f"points_lost_half.{name}_{classes}_time", lost, "at most 2", f"points, {where}: {said}")
    section.add(f"gain_over_uniform.{name}_{classes}_time", gain, "at least 3", f"points, {where}: {gained}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--every", type=int, help="use only every so many recordings")
    parser.add_argument("--no-publish", action="store_true", help="print the numbers and leave docs/ alone")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for encoder in given.encoders:
        name, _, path = encoder.partition("=")
        command = "python -m tools.bench_module_times" + (f" --every {given.every}" if given.every else "")
        section = Section("modules", f"Sub-models at half of the time: {name}", command, part=f"{name}.time")
        measure(name, ModulesBench(Path(path), given.audio, given.every), section)
        (show if given.no_publish else publish)(section)


if __name__ == "__main__":
    main()
