"""`ssc edge install`: put a bundle onto this device, or make the device a service of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from runtime_edge.base.files import make_private
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.inference.variants import choose_variant
from runtime_edge.service.systemd_unit import DEVICE, files
from runtime_edge.settings import load, read
from runtime_edge.systemd import give_to_owner
from runtime_edge.updates.bundle_store import BundleStore

_PATH = click.Path(path_type=Path)


@click.command("install", context_settings={"auto_envvar_prefix": "SSC_EDGE"})
@click.argument("bundle", required=False, type=_PATH)
@click.option("--config", type=_PATH, help="TOML file of the device's settings.")
@click.option("--state", type=_PATH, help="State directory of the device  [default: ssc-edge]")
@click.option("--pub", type=_PATH, help="Public key to trust [default: the one in the settings, or the pinned one].")
@click.option("--allow-older", is_flag=True, help="Install BUNDLE even if its generation is older.")
@click.option("--systemd", is_flag=True, help="Write a systemd unit, its configuration and its environment file.")
@click.option("--root", type=_PATH, help="With --systemd, write below this directory, for an image or a preview.")
@click.option("--json", "as_json", is_flag=True, allow_from_autoenv=False, help="Print JSON for programs.")
@click.option("--print", "show", is_flag=True, help="With --systemd, print the files and write none.")
def install(
    bundle: Path | None,
    config: Path | None,
    state: Path | None,
    pub: Path | None,
    allow_older: bool,
    systemd: bool,
    root: Path | None,
    show: bool,
    as_json: bool,
) -> None:
    """Install a bundle or the service. BUNDLE is verified, self-tested, and run from the device's next start on.

    Example: ssc edge install bundle/ --state /var/lib/ssc-edge

    Example: sudo ssc edge install --systemd --config ssc-edge.toml
    """
    if bundle is None and not systemd:
        raise UsageError("give a bundle directory to install, or --systemd to install the service")
    if as_json and show:
        raise UsageError("--print: prints files; leave out --json")
    told: dict[str, Any] = {}
    if systemd:
        told |= _install_service(config, root, show, as_json)
    if bundle is not None:
        told |= _install_bundle(bundle, load(DeviceConfig, config, {"state": state, "pub": pub}), allow_older, as_json)
    if as_json:
        click.echo(json.dumps(told, indent=2))


def _install_bundle(bundle: Path, settings: DeviceConfig, allow_older: bool, quiet: bool) -> dict[str, Any]:
    make_private(settings.state)
    store = BundleStore(settings.state, settings.trusted)
    variant = choose_variant(open_bundle(bundle, store.trusted).manifest, settings.variant, settings.target)
    installed = store.install_local(bundle, variant, allow_older=allow_older)
    give_to_owner(settings.state)
    verified = (
        "verified" if store.trusted else "verified by its digests alone (no key is trusted yet: give one with --pub)"
    )
    generation = installed.manifest.info.generation
    if not quiet:
        click.echo(
            f"{installed.path}: generation {generation}, {variant}, {verified} and self-tested; a running device "
            f"uses it from its next start on"
        )
    return {"bundle": str(installed.path), "generation": generation, "variant": variant, "signed": bool(store.trusted)}


def _install_service(config: Path | None, root: Path | None, show: bool, quiet: bool) -> dict[str, Any]:
    settings = {} if config is None else read(DeviceConfig, config)
    told: dict[str, Any] = DEVICE.install(files(settings), root, show, quiet)
    if not quiet and not show:
        click.echo(
            f"next: edit {DEVICE.config} (broker, device, target), then\n"
            f"  systemctl daemon-reload && systemctl enable --now {DEVICE.name}\n"
            f"  systemctl status {DEVICE.name}; ssc edge status --state {DEVICE.state}; journalctl -u {DEVICE.name}"
        )
    return told
