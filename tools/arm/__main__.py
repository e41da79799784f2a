"""`make arm-check`: run the device runtime on an emulated Raspberry Pi 4 (docs/arm.md).

python -m tools.arm [--runtimes NAME,...] [--cache DIR] [--audio DIR] [--json FILE]

Exit codes: 0 all checks passed; 1 a check failed; 77 (Automake's code for skipped) if the emulated machine is not
available here, with one line that says why.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tools.arm.arm_check import SITES, CheckResult, as_json, check
from tools.arm.debian import MIRROR, Unavailable
from tools.arm.machine import REPOSITORY, EmulatedMachine

SKIPPED = 77


def main() -> int:
    """Run the checks and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tools.arm", description=__doc__.split("\n")[0])
    parser.add_argument("--cache", type=Path, default=REPOSITORY / ".cache" / "arm", help="what is fetched goes here")
    parser.add_argument("--audio", type=Path, help="recordings to use instead of a synthesised soundscape")
    parser.add_argument("--mirror", default=MIRROR, help=f"Debian mirror [{MIRROR}]")
    parser.add_argument("--json", type=Path, help="write everything found here")
    names = [site.name for site in SITES]
    parser.add_argument("--runtimes", default=",".join(names), help=f"some of {', '.join(names)}")
    given = parser.parse_args()
    wanted = given.runtimes.split(",")
    if unknown := set(wanted) - set(names):
        parser.error(f"--runtimes: no {', '.join(sorted(unknown))}, only {', '.join(names)}")
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {text}", flush=True)

    try:
        machine = EmulatedMachine(given.cache, given.mirror, say)
        with tempfile.TemporaryDirectory(prefix="arm-check-") as directory:
            outcome = check(machine, [site for site in SITES if site.name in wanted], given.audio, Path(directory), say)
    except Unavailable as exc:
        print(f"skipped: {exc}")
        return SKIPPED
    if given.json:
        given.json.write_text(json.dumps(as_json(outcome), indent=2) + "\n")
    _print(outcome)
    say("all held" if not outcome.failures else "\n".join(["did not hold:", *outcome.failures]))
    return 1 if outcome.failures else 0


def _print(outcome: CheckResult) -> None:
    print(f"\nlibrary call on {outcome.cpu} against this machine")
    print(f"{'runtime':22} {'variant':12} {'windows':>7} {'max error':>10} {'cosine to fp32 here, there':>27} "
          f"{'RSS MB':>7} {'s a window':>10}")  # fmt: skip
    for one in outcome.embedded:
        here, there = one.cosine_to_fp32
        print(f"{one.runtime:22} {one.variant:12} {one.windows:7} {one.max_error:10.1e} {here:19.5f} {there:7.5f} "
              f"{one.rss_mb:7.0f} {one.window_s:10.2f}")  # fmt: skip
    print(f"\nssc edge run on {outcome.cpu}, frames completed by a server here; worst cosines with the same frame made "
          "here, and with the encoder in torch")  # fmt: skip
    print(f"{'runtime':22} {'encoding':9} {'windows':>7} {'acked':>5} {'decoded':>7} {'RSS MB':>7} {'seconds':>7}  "
          "cosines")  # fmt: skip
    for run in outcome.streamed:
        worst = ", ".join(f"{name} {run.cosine[name]:.5f} {run.torch_cosine[name]:.5f}" for name in sorted(run.cosine))
        print(f"{run.runtime:22} {run.encoding:9} {run.windows:7} {run.acked:5} {run.counted:7} {run.rss_mb:7.0f} "
              f"{run.seconds:7.0f}  {worst}")  # fmt: skip
    print("\nsite-packages with bytecode: "
          + ", ".join(f"{site} {size:.0f} MB" for site, size in outcome.installed_mb.items()))  # fmt: skip
    print("RSS holds the emulator's own memory too, and its seconds say nothing about a real Pi's.\n")


if __name__ == "__main__":
    sys.exit(main())
