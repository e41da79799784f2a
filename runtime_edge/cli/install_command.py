"""`ssc edge install`: put a bundle onto this device, or make the device a service of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import click

from runtime_edge.base.files import make_private, write_atomic
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.inference.variants import choose_variant
from runtime_edge.service import systemd_unit
from runtime_edge.settings import load, read
from runtime_edge.updates.bundle_store import BundleStore

_PATH = click.Path(path_type=Path)


@click.command("install", context_settings={"auto_envvar_prefix": "SSC_EDGE"})
@click.argument("bundle", required=False, type=_PATH)
@click.option("--config", type=_PATH, help="TOML file of the device's settings.")
@click.option("--state", type=_PATH, help="State directory of the device  [default: ssc-edge]")
@click.option("--pub", type=_PATH, help="Public key to trust; without it the settings', or the one pinned before.")
@click.option("--allow-older", is_flag=True, help="Install BUNDLE though its generation is older.")
@click.option("--systemd", is_flag=True, help="Write a systemd unit, its configuration and its environment file.")
@click.option("--root", type=_PATH, help="With --systemd, write below this directory: for images, or to look at.")
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
) -> None:
    """Verify, self-test and keep BUNDLE as what the device runs from its next start on; or install a service.

    Example: ssc edge install bundle/ --state /var/lib/ssc-edge
             sudo ssc edge install --systemd --config ssc-edge.toml
    """
    if bundle is None and not systemd:
        raise UsageError("give a bundle directory to install, or --systemd to install the service")
    if systemd:
        _install_service(config, root, show)
    if bundle is not None:
        _install_bundle(bundle, load(DeviceConfig, config, {"state": state, "pub": pub}), allow_older)


def _install_bundle(bundle: Path, settings: DeviceConfig, allow_older: bool) -> None:
    make_private(settings.state)
    store = BundleStore(settings.state, settings.trusted)
    variant = choose_variant(open_bundle(bundle, store.trusted).manifest, settings.variant, settings.target)
    installed = store.install_local(bundle, variant, allow_older=allow_older)
    _give_to_owner(settings.state)
    verified = (
        "verified" if store.trusted else "verified by its digests alone (no key is trusted yet: give one with --pub)"
    )
    click.echo(
        f"{installed.path}: generation {installed.manifest.info.generation}, {variant}, {verified} and self-tested; "
        "a device that runs takes it at its next start"
    )


def _give_to_owner(state: Path) -> None:
    """What root has put into a service's state directory belongs to the service."""
    if os.geteuid() == 0:
        owner = state.stat()
        for path in state.rglob("*"):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _install_service(config: Path | None, root: Path | None, show: bool) -> None:
    settings = {} if config is None else read(DeviceConfig, config)
    version = 0 if root is not None or show else systemd_unit.systemd_version()
    files = systemd_unit.service_files(systemd_unit.own_program(), version, settings)
    if show:
        click.echo("\n".join(f"# {path}\n{text}" for path, text in files.items()), nl=False)
        return
    if root is None and os.geteuid() != 0:
        raise UsageError("--systemd: only root may install a service: call it with sudo, or give --root or --print")
    for path, text in files.items():
        target = path if root is None else root / path.relative_to("/")
        if target.exists() and target.suffix != ".service":
            click.echo(f"kept {target}")
        else:
            write_atomic(target, text.encode())
            click.echo(f"wrote {target}")
    click.echo(
        f"next: edit {systemd_unit.CONFIG} (broker, device, target), then\n"
        f"  systemctl daemon-reload && systemctl enable --now {systemd_unit.SERVICE}\n"
        f"  systemctl status {systemd_unit.SERVICE}; ssc edge status --state {systemd_unit.STATE}; "
        f"journalctl -u {systemd_unit.SERVICE}"
    )
