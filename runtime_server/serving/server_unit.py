"""The server as a systemd service: its unit, its user, its files, and what it reports to systemd."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path

from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.sd_notify import Notifier
from runtime_edge.settings import as_toml
from runtime_edge.systemd import Service, below, give_to_owner
from runtime_server.serving.live_status import status_line
from runtime_server.serving.server_settings import ServerSettings
from runtime_server.serving.server_status import ServerStatus
from streamsplit_compile.bundle.bundle_writer import staging_directory

ENCODER, BUNDLE = Path("/var/lib/ssc-server/encoder.pt"), Path("/var/lib/ssc-server/bundle")
"""Where the service's user may read them."""
SERVER = Service(
    name="ssc-server",
    description="StreamSplit server",
    installer="ssc server install",
    arguments=("server", "run", "--config", "/etc/ssc-server.toml", str(ENCODER), str(BUNDLE)),
    after="network-online.target time-sync.target",
    start="# Before it serves it reads its ledger and what the broker has kept.\nTimeoutStartSec=30min",
    identity="# Who it is: a user of its own, who owns one directory and may open a file for each device.\n"
    "User=ssc-server\nGroup=ssc-server\nLimitNOFILE=65536",
    devices="PrivateDevices=yes",
    watchdog_s=300,
)
_USERS = Path("/etc/sysusers.d") / f"{SERVER.name}.conf"
_SIGNS_OF_LIFE = 4
"""How many within the watchdog's timeout."""
_UNWATCHED_S = 30.0


def files(settings: Mapping[str, object]) -> dict[Path, str]:
    """The service's files besides its unit, by absolute path; `settings` go into its configuration."""
    return {
        SERVER.config: as_toml(ServerSettings, {"host": "0.0.0.0", **settings, "state": SERVER.state}),  # noqa: S104
        SERVER.environment: "# Variables of the service, for example OMP_NUM_THREADS=2.\n",
        _USERS: f'u {SERVER.name} - "{SERVER.description}" {SERVER.state}\n',
    }


def bring(encoder: Path, bundle: Path, root: Path | None) -> None:
    """Copy an encoder and its bundle to where the service reads them. Raises UsageError or BundleError."""
    if not encoder.is_file():
        raise UsageError(f"{encoder}: no such file; give the encoder that the bundle was compiled from")
    open_bundle(bundle)
    state = below(root, SERVER.state)
    state.mkdir(parents=True, exist_ok=True)
    shutil.copy(encoder, state / "encoder.new")
    (state / "encoder.new").replace(below(root, ENCODER))
    with staging_directory(below(root, BUNDLE)) as staging:
        shutil.copytree(bundle, staging, dirs_exist_ok=True)
    give_to_owner(state)


async def tell_systemd(status: ServerStatus, notifier: Notifier) -> None:
    """Report to systemd that the server is ready, alive, and how it is doing, until cancelled."""
    notifier.ready()
    pause = _UNWATCHED_S if notifier.watchdog_s is None else notifier.watchdog_s / _SIGNS_OF_LIFE
    try:
        while True:
            notifier.alive()
            notifier.status(status_line({**status.status(), "troubles": status.own_troubles()}, None, pause))
            await asyncio.sleep(pause)
    finally:
        notifier.stopping()
