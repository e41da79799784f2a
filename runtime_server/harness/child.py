"""`ssc` as a child of the lab: on given processors, paced like another machine, and killed when its parent dies.

    python -m runtime_server.harness.child --core 1 --pace pace.json --account encoded.json edge run ...

Imports nothing from the server, because a device's memory is measured here.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def become_child(cores: list[int]) -> None:
    """Die with the parent (Linux) and run only on these processors; if none are given, on all."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if cores:
            os.sched_setaffinity(0, cores)


def main(arguments: list[str]) -> None:
    """Take `--core N`, `--pace FILE`, `--account FILE` and `--alone yes` from the front; run `ssc` with the rest."""
    cores: list[int] = []
    pace = account = alone = None
    while arguments and arguments[0] in ("--core", "--pace", "--account", "--alone"):
        option, value, *arguments = arguments
        if option == "--core":
            cores.append(int(value))
        elif option == "--pace":
            pace = value
        elif option == "--alone":
            alone = value
        else:
            account = value
    become_child(cores)
    if pace is not None:
        from runtime_server.harness import pacing

        encoded = pacing.apply(pacing.read_pace(pace), cores)
        if account is not None:
            atexit.register(pacing.write_account, account, encoded)
    if alone is not None:
        from runtime_server.harness import pacing

        pacing.see_own_load()
    from streamsplit_compile.cli.main import main as ssc

    ssc(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
