"""The device as a service of systemd."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from runtime_edge.config import DeviceConfig
from runtime_edge.settings import as_toml
from runtime_edge.systemd import Service

DEVICE = Service(
    name="ssc-edge",
    description="StreamSplit device",
    installer="ssc edge install --systemd",
    arguments=("edge", "run", "--config", "/etc/ssc-edge.toml"),
    after="network-online.target sound.target time-sync.target",
    start="# The first bundle may come over a thin link.\nTimeoutStartSec=30min",
    identity="# Who it is: nobody in particular, who may use the microphone and owns one directory.\n"
    "DynamicUser=yes\nSupplementaryGroups=audio",
    devices="DevicePolicy=closed\nDeviceAllow=char-alsa rw",
    watchdog_s=120,
)


def files(settings: Mapping[str, object]) -> dict[Path, str]:
    """The files it has besides its unit, by absolute path; `settings` go into its configuration."""
    return {
        DEVICE.config: as_toml(DeviceConfig, {"source": "mic", **settings, "state": DEVICE.state}),
        DEVICE.environment: "# Variables of the service, for example SSC_EDGE_LOG_LEVEL=info or OMP_NUM_THREADS=1.\n",
    }
