"""systemd units for devices and servers: each starts with the machine and has only the rights that it needs."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from runtime_edge.base.files import write_atomic
from runtime_edge.errors import UsageError

_BACKOFF_VERSION = 254
"""The first systemd version that waits longer after each failed start."""

_UNIT = """\
# Written by `{installer}`. Changes belong into `systemctl edit {name}`.
[Unit]
Description={description}
After={after}
Wants=network-online.target time-sync.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
EnvironmentFile=-{environment}
WatchdogSec={watchdog_s}
{start}
TimeoutStopSec=90
Restart=always
RestartSec=5
{backoff}
{identity}
StateDirectory={name}
StateDirectoryMode=0750
WorkingDirectory={state}
UMask=0027

# What it sees.
PrivateTmp=yes
ProtectSystem=strict
ProtectHome={protect_home}
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
{devices}

# What it may do.
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

# When memory runs out it is this service that starts again, not the machine.
OOMPolicy=stop
MemoryMax=80%

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Service:
    """The differences between this project's services; the parts of a unit are lines of text."""

    name: str
    description: str
    installer: str
    """The command that writes the unit."""
    arguments: tuple[str, ...]
    """The arguments of `ssc`."""
    after: str
    start: str
    """How long a start may take, and why."""
    identity: str
    """The lines that set its user and the directory that it owns."""
    devices: str
    """Which devices it may open."""
    watchdog_s: int

    @property
    def config(self) -> Path:
        """Path of its settings."""
        return Path("/etc") / f"{self.name}.toml"

    @property
    def environment(self) -> Path:
        """Path of its environment variables."""
        return Path("/etc/default") / self.name

    @property
    def state(self) -> Path:
        """The directory that it owns."""
        return Path("/var/lib") / self.name

    @property
    def file(self) -> Path:
        """Path of its unit."""
        return Path("/etc/systemd/system") / f"{self.name}.service"

    def unit(self, program: Path, systemd_version: int) -> str:
        """The text of the unit that runs `program`, an absolute path to `ssc`.

        Memory that is both writable and executable is allowed: inference runtimes may compile at run time.
        """
        in_home = program.resolve().is_relative_to("/home") or program.resolve().is_relative_to("/root")
        return _UNIT.format(
            name=self.name,
            description=self.description,
            installer=self.installer,
            command=shlex.join([str(program), *self.arguments]),
            after=self.after,
            environment=self.environment,
            watchdog_s=self.watchdog_s,
            start=self.start,
            backoff="RestartSteps=8\nRestartMaxDelaySec=5min\n" if systemd_version >= _BACKOFF_VERSION else "",
            identity=self.identity,
            state=self.state,
            # A program installed in somebody's home directory must be readable there, but nothing writable.
            protect_home="read-only" if in_home else "yes",
            devices=self.devices,
        )

    def install(self, others: Mapping[Path, str], root: Path | None, show: bool, quiet: bool) -> dict[str, list[str]]:
        """Write the unit, and its other files unless they exist; report what was done. Raises UsageError.

        Args:
            others: text of each other file, by absolute path.
            root: write below this directory.
            show: print everything and write nothing.
            quiet: print nothing.

        Returns:
            The files that were written and those that were kept.
        """
        version = 0 if root is not None or show else systemd_version()
        files = {self.file: self.unit(own_program(), version), **others}
        told: dict[str, list[str]] = {"wrote": [], "kept": []}
        if show:
            click.echo("\n".join(f"# {path}\n{text}" for path, text in files.items()), nl=False)
            return told
        need_root("a service", root)
        for path, text in files.items():
            target = below(root, path)
            kept = path != self.file and target.exists()
            if not kept:
                write_atomic(target, text.encode())
            told["kept" if kept else "wrote"].append(str(target))
            if not quiet:
                click.echo(f"{'kept' if kept else 'wrote'} {target}")
        return told


def below(root: Path | None, path: Path) -> Path:
    """The path below `root` that corresponds to an absolute path of that system."""
    return path if root is None else root / path.relative_to("/")


def need_root(what: str, root: Path | None) -> None:
    """Raise UsageError if anyone but root would write into the system itself."""
    if root is None and os.geteuid() != 0:
        raise UsageError(f"only root may install {what}: use sudo, or give --root or --print")


def give_to_owner(state: Path) -> None:
    """Give the service what root has put into its state directory."""
    if os.geteuid() == 0:
        owner = state.stat()
        for path in state.rglob("*"):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def systemd_version() -> int:
    """Major version of this machine's systemd. Raises UsageError when there is none."""
    try:
        said = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, timeout=10, check=True)
        return int(said.stdout.split()[1].split(".")[0])
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        raise UsageError("this machine has no systemd: start `ssc` by other means, or give --root or --print") from None


def own_program() -> Path:
    """Path of this environment's `ssc`. Raises UsageError."""
    beside, found = Path(sys.executable).with_name("ssc"), shutil.which("ssc")
    if beside.exists():
        return beside.absolute()
    if found is None:
        raise UsageError("the program ssc is not on the path: a service needs it")
    return Path(found).absolute()
