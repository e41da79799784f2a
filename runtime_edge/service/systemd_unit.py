"""A systemd unit for a device: starts with the machine, is watched, and may do nothing but its work."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from runtime_edge.config import DeviceConfig
from runtime_edge.errors import UsageError
from runtime_edge.settings import as_toml

SERVICE = "ssc-edge"
CONFIG = Path("/etc/ssc-edge.toml")
ENVIRONMENT = Path("/etc/default/ssc-edge")
STATE = Path("/var/lib/ssc-edge")
_WATCHDOG_S = 120
_BACKOFF_VERSION = 254
"""Of systemd: the first one that waits longer after each failed start."""

_UNIT = """\
# Written by `ssc edge install --systemd`. Changes belong into `systemctl edit {service}`.
[Unit]
Description=StreamSplit device
After=network-online.target sound.target time-sync.target
Wants=network-online.target time-sync.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
EnvironmentFile=-{environment}
WatchdogSec={watchdog_s}
# The first bundle may come over a thin link.
TimeoutStartSec=30min
TimeoutStopSec=90
Restart=always
RestartSec=5
{backoff}
# Who it is: nobody in particular, who may use the microphone and owns one directory.
DynamicUser=yes
SupplementaryGroups=audio
StateDirectory={service}
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
DevicePolicy=closed
DeviceAllow=char-alsa rw

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


def unit(program: Path, systemd_version: int) -> str:
    """The text of the unit that runs `program`, an absolute path of `ssc`.

    Memory that is written and executed is not forbidden: inference runtimes may compile at run time.
    """
    in_home = program.resolve().is_relative_to("/home") or program.resolve().is_relative_to("/root")
    backoff = "RestartSteps=8\nRestartMaxDelaySec=5min\n" if systemd_version >= _BACKOFF_VERSION else ""
    return _UNIT.format(
        service=SERVICE,
        command=shlex.join([str(program), "edge", "run", "--config", str(CONFIG)]),
        environment=ENVIRONMENT,
        watchdog_s=_WATCHDOG_S,
        backoff=backoff,
        state=STATE,
        # A program that was installed in somebody's home must be seen there, but nothing written.
        protect_home="read-only" if in_home else "yes",
    )


def service_files(program: Path, systemd_version: int, settings: Mapping[str, object]) -> dict[Path, str]:
    """What an installed service consists of, by absolute path; `settings` go into its configuration."""
    environment = "# Variables of the service, for example SSC_EDGE_LOG_LEVEL=info or OMP_NUM_THREADS=1.\n"
    return {
        Path("/etc/systemd/system") / f"{SERVICE}.service": unit(program, systemd_version),
        CONFIG: as_toml(DeviceConfig, {"source": "mic", **settings, "state": STATE}),
        ENVIRONMENT: environment,
    }


def systemd_version() -> int:
    """Major version of this machine's systemd. Raises UsageError when there is none."""
    try:
        said = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, timeout=10, check=True)
        return int(said.stdout.split()[1].split(".")[0])
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        raise UsageError("--systemd: this machine has no systemd; start `ssc edge run` by other means") from None


def own_program() -> Path:
    """The `ssc` of this environment. Raises UsageError."""
    beside, found = Path(sys.executable).with_name("ssc"), shutil.which("ssc")
    if beside.exists():
        return beside.absolute()
    if found is None:
        raise UsageError("--systemd: the program ssc is not on the path")
    return Path(found).absolute()
