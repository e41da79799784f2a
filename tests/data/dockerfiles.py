"""A Dockerfile's instructions, and its steps carried out without Docker."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

_STEPS = """
set -e
mount -t tmpfs -o size=8g tmpfs "$WORK"
mkdir "$WORK/upper" "$WORK/work" "$WORK/root"
mount -t overlay -o "lowerdir=/,upperdir=$WORK/upper,workdir=$WORK/work" overlay "$WORK/root"
mount --rbind /dev "$WORK/root/dev"
mount --rbind /proc "$WORK/root/proc"
chmod 755 "$WORK/root/root"
"""


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, rest), in order."""
    lines = [line for line in dockerfile.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(first, rest.strip()) for first, _, rest in (line.partition(" ") for line in joined)]


def variables(found: list[tuple[str, str]], path: str) -> dict[str, str]:
    """What ENV sets, where PATH was `path`."""
    words = (word.partition("=") for kind, rest in found if kind == "ENV" for word in shlex.split(rest))
    return {name: value.replace("$PATH", path) for name, _, value in words}


def run_steps(found: list[tuple[str, str]], context: Path, work: Path, then: str) -> subprocess.CompletedProcess[str]:
    """Carry out COPY, RUN, WORKDIR and ENV in a copy of this machine's root directory, then a script as USER.

    What stands for the base image is this machine's own system, with the Python of the tests; it stays as it is. All
    stages share one root, so COPY from an earlier one has nothing to do. The script's first command is ENTRYPOINT with
    CMD: "$@".
    """
    path = f"{Path(sys.base_prefix) / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    root, script = work / "root", _STEPS
    last = dict(found)
    pip = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
    for kind, rest in found:
        if kind == "COPY" and not rest.startswith("--from"):
            script += shlex.join(["cp", "-a", str(context), str(root) + rest.split()[-1]]) + "\n"
        elif kind == "COPY":
            _, source, to = rest.split()
            assert source == to
        elif kind == "RUN":
            script += shlex.join(["chroot", str(root), "env", f"PATH={path}", "/bin/sh", "-c", rest]) + "\n"
    environment = [f"{name}={value}" for name, value in variables(found, path).items()]
    user = f"--userspec={last['USER']}:{last['USER']}"
    command = ["env", "-i", f"--chdir={last['WORKDIR']}", "HOME=/", *environment, "/bin/sh", "-c", then, "sh"]
    start = [*_words(last["ENTRYPOINT"]), *_words(last["CMD"])]
    # In a network of its own its ports are free; its loopback interface is up in no other way.
    inside = "ip link set lo up && exec " + shlex.join(["chroot", user, str(root), *command, *start])
    script += shlex.join(["unshare", "--net", "sh", "-c", inside])
    return subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", script], capture_output=True, text=True,
        timeout=1500, env={**pip, "PATH": os.environ["PATH"], "WORK": str(work)},
    )  # fmt: skip


def _words(exec_form: str) -> list[str]:
    return re.findall(r'"((?:[^"\\]|\\.)*)"', exec_form)


def health_command(found: list[tuple[str, str]]) -> str:
    """What HEALTHCHECK runs, as one line of a shell."""
    return shlex.join(_words(dict(found)["HEALTHCHECK"].partition("CMD")[2]))
