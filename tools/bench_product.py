"""Measures what a newcomer gets: the time until the first right label on the page, and how often labels are right.

    python -m tools.bench_product [--audio recordings/] [--no-publish]

For the time, this checkout's last commit is cloned into an empty directory and `make demo` is run there, which makes an
environment, installs, fetches recordings, compiles and streams. Meanwhile the page's JSON is polled for events. The
clock runs from the clone to the first event with a label that the demo's own terminal calls right for that device.

For the labels, the whole fold 5 of ESC-10 and of Speech Commands (`recordings/<set>/labels.csv`) goes through the
shipped encoder and head, compiled and run by the library that devices use (`runtime_edge.open`). The results of the
demo's own devices and server on the demo's recordings are given for comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import runtime_edge
from runtime_server.demo.demo import ENCODER, WEIGHTS
from runtime_server.labels.labelled import read_clips
from tools.benchmarks import Section, publish, show
from tools.reference.corpus import HELD_OUT_FOLD, SETS

_ROOT = Path(__file__).resolve().parent.parent
_ADDRESS = re.compile(r"open (http://\S+) ")
_RIGHT = re.compile(r"\] (\S+) +(\S+) +[\d.]+  right$")
_LOOK_S, _PATIENCE_S = 0.5, 3600.0


def right_of_fold(audio: Path, work: Path) -> dict[str, tuple[int, int]]:
    """Counts of correctly labelled clips and of all clips, by set; labels have the highest mean score over windows."""
    ssc = [sys.executable, "-m", "streamsplit_compile"]
    encoder, bundle = work / "encoder.pt", work / "bundle"
    subprocess.run([*ssc, "encoder", "new", ENCODER, "--weights", WEIGHTS, "-o", encoder], check=True)
    subprocess.run([*ssc, "compile", encoder, "--targets", "rpi4,m2", "-o", bundle], check=True, capture_output=True)
    opened = runtime_edge.open(str(bundle), head=str(work / "encoder.head.json"))
    found = {}
    for data in SETS:
        clips = [clip for clip in read_clips(audio / data / "labels.csv") if clip.fold == HELD_OUT_FOLD]
        right = 0
        for clip in clips:
            windows = opened.classify(clip.path)
            means = {label: np.mean([scores[label] for scores in windows]) for label in windows[0]}
            right += max(means, key=lambda label: means[label]) in clip.labels
        found[data] = right, len(clips)
    return found


class Newcomer:
    """Types the commands in the README, and looks at the page."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._began = folder, time.monotonic()
        self.said: list[str] = []
        self.first_event: dict[str, Any] = {}
        self.first_event_s = self.installed_s = 0.0
        self._page = ""
        self._right: set[tuple[str, str]] = set()

    def plays(self) -> dict[str, Any]:
        """Clone and run `make demo`; returns the report's summary. Raises CalledProcessError."""
        subprocess.run(["git", "clone", "--quiet", _ROOT, self._folder], check=True)
        environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
        command = ["make", "demo"]
        with subprocess.Popen(
            command, cwd=self._folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as demo:
            watching = threading.Thread(target=self._watch, args=[demo], daemon=True)
            watching.start()
            for line in demo.stdout or ():
                self._hear(line.rstrip())
        watching.join()
        if demo.returncode:
            raise subprocess.CalledProcessError(demo.returncode, command, "\n".join(self.said[-20:]))
        summary: dict[str, Any] = json.loads((self._folder / "demo-report" / "summary.json").read_bytes())
        return summary

    def _hear(self, line: str) -> None:
        print(line, flush=True)
        self.said.append(line)
        if line.startswith("[") and not self.installed_s:
            self.installed_s = time.monotonic() - self._began
        if address := _ADDRESS.search(line):
            self._page = address[1]
        if right := _RIGHT.search(line):
            self._right.add((right[1], right[2]))

    def _watch(self, demo: subprocess.Popen[str]) -> None:
        while demo.poll() is None and not self.first_event:
            for event in self._events():
                if event["kind"] == "on" and (event["device"], event["label"]) in self._right:
                    self.first_event, self.first_event_s = event, time.monotonic() - self._began
                    print(f"the page has shown {event} after {self.first_event_s:.0f} s", flush=True)
                    return
            time.sleep(_LOOK_S)

    def _events(self) -> Iterator[dict[str, Any]]:
        if not self._page:
            return
        try:
            with urllib.request.urlopen(f"{self._page}/api/v1/events", timeout=10) as answer:
                yield from json.load(answer)["events"]
        except OSError:
            return


def main(arguments: list[str] | None = None) -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, help="holds esc10/ and speech_commands/; without it fold 5 is left out")
    parser.add_argument("--quick", action="store_true", help="as other benchmarks have it; changes nothing")
    parser.add_argument("--no-publish", action="store_true")
    options = parser.parse_args(arguments)
    section = Section("product", "The demo", "python -m tools.bench_product --audio recordings/", part="demo")
    with tempfile.TemporaryDirectory() as made:
        if options.audio is not None:
            _judge(section, right_of_fold(options.audio, Path(made)))
        load = os.getloadavg()[0]
        newcomer = Newcomer(Path(made) / "clone")
        summary = newcomer.plays()
    if not newcomer.first_event:
        raise SystemExit("the page has shown no label that was right")
    _tell(section, newcomer, summary, load)
    (show if options.no_publish else publish)(section)


def _judge(section: Section, right: dict[str, tuple[int, int]]) -> None:
    """Add the results on fold 5."""
    hits, clips = (sum(counts[place] for counts in right.values()) for place in (0, 1))
    what = f"all {clips} clips of fold 5 of both sets, through the bundle by the library (`runtime_edge.open`)"
    section.add("demo_accuracy", hits / clips, "at least 0.85", what)
    for data, (hits, clips) in right.items():
        section.add(f"demo_accuracy_of.{data}", hits / clips, "", f"of it the {clips} of {data}")


def _tell(section: Section, newcomer: Newcomer, summary: dict[str, Any], load: float) -> None:
    """Add what the newcomer saw."""
    heard, alone = summary["heard"], summary["heard"]["on_the_device_alone"]
    section.add(
        "first_event_s",
        newcomer.first_event_s,
        "at most 300",
        "seconds from `git clone` to the first right label on the page, `make demo` and its installation included",
    )
    section.detail("of it until everything was installed, s", f"{newcomer.installed_s:.0f}")
    section.detail("the whole demo after that, s", f"{summary['duration_s']:.0f}")
    section.detail("processes that wanted to run when it began, mean of a minute", f"{load:.2f}")
    section.detail("pip's cache when it began", _pip_cache())
    section.add(
        "default_recordings_accuracy",
        heard["accuracy"],
        "",
        f"of {heard['recordings']} playings of {summary['audio']}, through devices and server",
    )
    section.add("default_recordings_accuracy_alone", alone["accuracy"], "", "by the device that ships nothing")


def _pip_cache() -> str:
    told = subprocess.run([sys.executable, "-m", "pip", "cache", "info"], capture_output=True, text=True)
    sizes = [
        line.partition(": ")[2] for line in told.stdout.splitlines() if line.startswith("Package index page cache s")
    ]
    return sizes[0] if sizes else "none"


if __name__ == "__main__":
    main()
