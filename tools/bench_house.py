"""Compares this checkout with an earlier version: a window's cost on the device, and how fast the server drains.

    python -m tools.bench_house [--against DIR] [--pairs 15] [--ingest-pairs 7] [--no-publish]

The earlier version is a clone with its own virtual environment and the same versions of all packages; it is made below
.cache if it is missing. Each side runs in its own processes, on the same weights and cuts; they take turns, and every
pair of runs gives one ratio. 15 and 7 pairs take about 25 minutes on two cores, and 5 more if the clone has to be made
first. Nothing else should run on the machine meanwhile. Pairs are kept in .cache/house, and an interrupted run
continues from there as long as the packages have not changed since.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.records.table import SplitterTable
from streamsplit_compile.bundle.soundscape import soundscape
from tools.bench_edge import SPEED, alone, compiled
from tools.bench_server import DEVICES, ENCODER, ServerProcess, drained
from tools.benchmarks import Section, publish, show
from tools.earlier_formats import frame_v1, table_v1
from tools.server_load import RecordedFrames

ROOT = Path(__file__).resolve().parent.parent
EARLIER = "07558ea"


@dataclass(frozen=True)
class Checkout:
    """A version of this project with its own interpreter."""

    name: str
    root: Path
    python: Path

    @property
    def env(self) -> dict[str, str]:
        """Environment of its processes, which import only this checkout's packages."""
        return {**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}

    @property
    def ssc(self) -> Path:
        """The path of its `ssc` command."""
        return self.python.with_name("ssc")

    def run(self, *arguments: object) -> str:
        """Run its interpreter; returns standard output. Raises SystemExit with the end of the output if it fails."""
        done = subprocess.run(
            [str(self.python), *map(str, arguments)],
            capture_output=True, text=True, check=False, env=self.env, cwd=self.root,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{self.name}: {' '.join(map(str, arguments[:2]))}: {done.stderr[-2000:]}")
        return done.stdout

    def check(self) -> None:
        """Raise SystemExit unless it runs its own code."""
        found = Path(self.run("-c", "import runtime_edge; print(runtime_edge.__file__)").strip())
        if self.root not in found.parents:
            raise SystemExit(f"{self.name}: runs {found}, which is not below {self.root}; make its .venv anew")

    def packages(self) -> set[str]:
        """The installed packages, as `name==version`."""
        return set(self.run("-m", "pip", "freeze", "--exclude-editable").splitlines())


@dataclass(frozen=True)
class Pair:
    """One measurement of each side, one after the other."""

    today: float
    earlier: float

    @property
    def ratio(self) -> float:
        """The figure of this checkout over the earlier version's."""
        return self.today / self.earlier


def today() -> Checkout:
    """The version that is checked out here."""
    return Checkout("today", ROOT, Path(sys.executable))


def earlier(directory: Path) -> Checkout:
    """The version to compare with, cloned from this checkout and installed if the directory does not exist."""
    python = directory / ".venv" / "bin" / "python"
    if not directory.exists():
        print(f"cloning {EARLIER} into {directory}", flush=True)
        subprocess.run(["git", "clone", "--quiet", "--no-checkout", ROOT, directory], check=True)
        subprocess.run(["git", "checkout", "--quiet", EARLIER], cwd=directory, check=True)
    if not python.exists():
        print(f"installing it in {python.parent.parent}, with the packages of this environment", flush=True)
        constraints = directory / ".git" / "constraints.txt"
        constraints.write_text("\n".join(sorted(today().packages())) + "\n")
        subprocess.run(
            ["sh", "tools/make_venv.sh", sys.executable, ".venv"],
            cwd=directory, env={**os.environ, "PIP_CONSTRAINT": str(constraints)}, check=True,
        )  # fmt: skip
    return Checkout(EARLIER, directory.resolve(), python.absolute())


def measured_code() -> str:
    """Git's names of the packages' trees, which identify the measured code; empty if there are uncommitted changes."""
    packages = ("runtime_edge", "runtime_server", "streamsplit_compile", "models")
    if subprocess.check_output(["git", "status", "--porcelain", *packages], cwd=ROOT, text=True):
        return ""
    trees = subprocess.check_output(["git", "rev-parse", *(f"HEAD:{name}" for name in packages)], cwd=ROOT, text=True)
    return " ".join(tree[:12] for tree in trees.split())


def kept_pairs(file: Path, what: str, code: str) -> list[Pair]:
    """Pairs of the same code kept by an earlier run: lines of JSON with `code`, `what`, `today` and `earlier`."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [
        Pair(line["today"], line["earlier"]) for line in lines if code and (line["code"], line["what"]) == (code, what)
    ]


def taking_turns(
    what: str,
    sides: tuple[Checkout, Checkout],
    pairs: int,
    measure: Callable[[Checkout, str], float],
    file: Path = ROOT / ".cache" / "house" / "pairs.jsonl",
    code: str | None = None,
) -> list[Pair]:
    """Measure both sides `pairs` times in turn; the one that begins changes from pair to pair.

    Pairs of the same code that are in `file` are not measured again.
    """
    code = measured_code() if code is None else code
    file.parent.mkdir(parents=True, exist_ok=True)
    found = kept_pairs(file, what, code)[:pairs]
    for number in range(len(found), pairs):
        order = sides if number % 2 == 0 else sides[::-1]
        values = {side.name: measure(side, f"{number}-{side.name}") for side in order}
        pair = Pair(*(values[side.name] for side in sides))
        found.append(pair)
        with file.open("a") as lines:
            lines.write(json.dumps({"code": code, "what": what, **vars(pair)}) + "\n")
        print(f"pair {number + 1} of {pairs}: {pair}, ratio {pair.ratio:.4f}", flush=True)
    return found


def bundle_of(bundle: Bundle, side: Checkout) -> Path:
    """The bundle for a side: the earlier version compiles the same weights itself, at the same cuts, because its front
    end is another graph. It uses today's tables, which it can read.
    """
    if side.name != EARLIER:
        return bundle.path
    own = bundle.path.with_name(f"bundle-{EARLIER}")
    if not own.exists():
        cuts = ",".join(cut.name for cut in bundle.manifest.info.cuts[1:-1])
        encoder, targets = bundle.path.with_name("encoder.pt"), ",".join(bundle.manifest.info.targets)
        side.run(side.ssc, "compile", encoder, "--targets", targets, "--cuts", cuts, "-o", own)
        for path in (bundle.path / "tables").glob("*.json"):
            table = SplitterTable.from_json(path.read_bytes(), path.name)
            (own / "tables" / path.name).write_bytes(table_v1(table))
    return own


@contextlib.asynccontextmanager
async def servers(sides: tuple[Checkout, Checkout], work: Path, bundle: Bundle) -> AsyncIterator[dict[str, str]]:
    """Run a server for each side that completes frames and does not train; yields the brokers' addresses by side."""
    urls = {}
    async with contextlib.AsyncExitStack() as running:
        for side in sides:
            directory = work / f"server-{side.name}"
            directory.mkdir()
            encoder = bundle.path.parent / "encoder.pt"
            server = ServerProcess(directory, encoder, bundle_of(bundle, side), side.root, side.python)
            await running.enter_async_context(server.running())
            urls[side.name] = server.url
        yield urls


async def overhead(section: Section, sides: tuple[Checkout, Checkout], work: Path, pairs: int, windows: int) -> None:
    """Measure a window's cost on a device besides the model (`tools.edge_overhead`), with a server of its version."""
    sound, bundle = work / "sound.wav", compiled(work, ENCODER, formats=("onnx",))
    soundfile.write(sound, soundscape(60.0, 16_000, seed=0), 16_000, subtype="PCM_16")
    cuts: dict[str, Counter[str]] = {side.name: Counter() for side in sides}
    async with servers(sides, work, bundle) as brokers:

        def measure(side: Checkout, name: str) -> float:
            arguments = ("--broker", brokers[side.name], "--source", sound, "--state", work / name)
            with alone():
                found = json.loads(
                    side.run("-m", "tools.edge_overhead", *arguments, "--windows", windows, "--speed", SPEED)
                )
            cuts[side.name].update(found["cuts"])
            return float(found["overhead_ms"])

        measured = taking_turns(f"overhead, {windows} windows", sides, pairs, measure)
    what = f"processor time of a window besides the model, {ENCODER}, {windows} windows a run"
    _ratio(section, "overhead", measured, "at most 1.03", what, "ms")
    for side in sides if all(cuts.values()) else ():  # pairs kept from earlier have no cuts
        section.detail(
            f"windows by cut, {side.name}", ", ".join(f"{cut} {n}" for cut, n in sorted(cuts[side.name].items()))
        )


def ingest(section: Section, sides: tuple[Checkout, Checkout], work: Path, pairs: int, frames: int) -> None:
    """Measure the windows a second that a newly started server drains, after a warm-up with a third as many.

    Each server gets the frames that its own devices would send.
    """
    bundle: Bundle = compiled(work, ENCODER, formats=("onnx",))
    cut = len(bundle.manifest.info.cuts) // 2
    written: dict[str, Any] = {"encode": frame_v1, "identity_header": subjects.BROKER_ID_HEADER}
    frames_of = {EARLIER: RecordedFrames(bundle, cut, DEVICES, **written)}
    frames_of["today"] = RecordedFrames(bundle, cut, DEVICES)

    async def drain(side: Checkout, name: str) -> float:
        (work / name).mkdir()
        encoder = bundle.path.parent / "encoder.pt"
        server = ServerProcess(work / name, encoder, bundle_of(bundle, side), side.root, side.python)
        async with server.running() as process:
            await drained(server, process, frames_of[side.name], frames // 3)
            return await drained(server, process, frames_of[side.name], frames)

    turn = functools.partial(taking_turns, f"ingest, {frames} frames", sides, pairs)
    measured = turn(lambda side, name: asyncio.run(drain(side, name)))
    what = f"windows a second from a backlog of {frames}, {ENCODER} behind {bundle.manifest.info.cuts[cut].name}"
    _ratio(section, "ingest", measured, "at least 0.97", what, "windows a second")


def _ratio(section: Section, name: str, pairs: list[Pair], goal: str, what: str, unit: str) -> None:
    first, median, third = np.percentile([pair.ratio for pair in pairs], (25, 50, 75)).tolist()
    section.add(f"{name}_ratio", median, goal, f"{what}: today over {EARLIER}, median of {len(pairs)} pairs")
    section.add(f"{name}_ratio_quartile_1", first, "", "a quarter of the pairs are below")
    section.add(f"{name}_ratio_quartile_3", third, "", "a quarter of the pairs are above")
    medians = (float(np.median([getattr(pair, side) for pair in pairs])) for side in ("today", "earlier"))
    section.detail(f"{name}, today and {EARLIER}, medians, {unit}", ", ".join(f"{value:.4g}" for value in medians))


def _surroundings(section: Section, sides: tuple[Checkout, Checkout]) -> None:
    """Add everything besides the code that could make the two differ."""
    section.detail("processes that wanted to run when it began, mean of a minute", f"{os.getloadavg()[0]:.2f}")
    differing = sides[0].packages() ^ sides[1].packages()
    section.detail("packages that differ between the two environments", ", ".join(sorted(differing)) or "none")


def _directories(work: Path) -> Iterator[Path]:
    for name in ("overhead", "ingest"):
        (work / name).mkdir()
        yield work / name


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--against", type=Path, default=ROOT / ".cache" / "house" / EARLIER,
        help="checkout of the earlier version, with its .venv [default: %(default)s, made when it is not there]",
    )  # fmt: skip
    parser.add_argument("--pairs", type=int, help="of device runs [default: 15, with --quick 5]; 0 leaves them out")
    parser.add_argument(
        "--ingest-pairs", type=int, help="of server runs [default: 7, with --quick 3]; 0 leaves them out"
    )
    parser.add_argument(
        "--windows", type=int,
        help="in a device run [default: 500, with --quick 200]; where the machine's speed changes by the minute, more "
        "and shorter pairs say more",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="fewer pairs, and shorter runs")
    parser.add_argument("--no-publish", action="store_true", help="print the numbers and leave docs/ alone")
    options = parser.parse_args(arguments)
    quick = options.quick
    pairs = (5 if quick else 15) if options.pairs is None else options.pairs
    ingest_pairs = (3 if quick else 7) if options.ingest_pairs is None else options.ingest_pairs
    windows = (200 if quick else 500) if options.windows is None else options.windows
    sides = (today(), earlier(options.against))
    for side in sides:
        side.check()
    command = f"python -m tools.bench_house --pairs {pairs} --ingest-pairs {ingest_pairs}"
    if options.windows is not None:
        command += f" --windows {windows}"
    section = Section("house", f"This version against {EARLIER}", command + (" --quick" if quick else ""))
    _surroundings(section, sides)
    with tempfile.TemporaryDirectory(prefix="ssc-bench-") as work:
        of_overhead, of_ingest = _directories(Path(work))
        if pairs:
            asyncio.run(overhead(section, sides, of_overhead, pairs, windows))
        if ingest_pairs:
            ingest(section, sides, of_ingest, ingest_pairs, 6000 if quick else 12_000)
    if options.no_publish:
        show(section)
        return {}
    return publish(section)


if __name__ == "__main__":
    main()
