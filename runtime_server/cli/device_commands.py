"""`ssc server device`, and the options of `ssc server broker` about admission."""

from __future__ import annotations

import platform
from pathlib import Path

import click

from runtime_edge.base.files import write_atomic
from runtime_edge.base.text import shown
from runtime_edge.errors import UsageError
from runtime_edge.formats.credentials import credentials_file
from runtime_server.broker.access import Access
from runtime_server.cli.server_access import check_owner
from streamsplit_compile.cli.options import PathParam, json_option, together
from streamsplit_compile.cli.printing import print_json, print_table

broker_security_options = together(
    click.option(
        "--auth/--no-auth",
        default=None,
        help="Admit only devices that were added [default: on once one was added, or if --host is not loopback].",
    ),
    click.option("--tls-cert", type=PathParam(), help="The broker's certificate."),
    click.option("--tls-key", type=PathParam(), help="The key of that certificate."),
    click.option("--tls-ca", type=PathParam(), help="Check devices' certificates against this authority."),
)
"""Options: who the broker admits, and what it encrypts."""

_state_option = click.option(
    "--state", type=PathParam(), default=Path("ssc-server"), show_default=True, help="The server's state directory."
)


@click.group()
def device() -> None:
    """Manage which devices are admitted. Run it on the server's machine; it takes effect at once.

    Example: ssc server device add pi-1 -o pi-1.creds
    """


@device.command()
@click.argument("names", nargs=-1, required=True)
@click.option("-o", "--out", type=PathParam(), help="File, or existing directory, for the key [default: NAME.creds].")
@click.option("--reader", is_flag=True, help="Add an MQTT client, with a password, that may read all events.")
@_state_option
@json_option
def add(names: tuple[str, ...], out: Path | None, reader: bool, state: Path, as_json: bool) -> None:
    """Admit devices. Each gets a key file; copy it to the device for `ssc edge run --credentials`.

    Example: ssc server device add pi-1 pi-2 -o keys/
    """
    if out is not None and len(names) > 1 and not out.is_dir():
        raise UsageError(f"-o {out}: give an existing directory for the keys of {len(names)} devices")
    if reader and out is not None:
        raise UsageError("-o: a reader has no key file; its password is printed")
    check_owner(state)
    access, added = _access(state), []
    for name in names:
        if reader:
            added.append({"name": name, "password": access.add_reader(name)})
            continue
        path = out / f"{name}.creds" if out is not None and out.is_dir() else out or Path(f"{name}.creds")
        if path.exists():
            raise UsageError(f"{path}: exists; move it away, or give another -o")
        seed = access.add(name)
        whose = f"{name}, added on {platform.node()} for the server in {shown(state.resolve())}"
        write_atomic(path, credentials_file(seed, whose), 0o600)
        added.append({"name": name, "credentials": str(path)})
    known = access.reload()
    if as_json:
        print_json({"added": added, "broker_told": known})
        return
    for entry in added:
        secret = f"password {entry['password']}" if reader else f"key in {entry['credentials']}, for the device alone"
        click.echo(f"{entry['name']}: {secret}")
    click.echo(_told(known))


@device.command()
@click.argument("names", nargs=-1, required=True)
@_state_option
@json_option
def revoke(names: tuple[str, ...], state: Path, as_json: bool) -> None:
    """Revoke devices. They are disconnected at once and no longer admitted.

    Example: ssc server device revoke pi-1
    """
    check_owner(state)
    access = _access(state)
    for name in names:
        access.revoke(name)
    known = access.reload()
    if as_json:
        print_json({"revoked": list(names), "broker_told": known})
    else:
        click.echo(f"revoked {', '.join(names)}. {_told(known)}")


@device.command("list")
@_state_option
@json_option
def list_(state: Path, as_json: bool) -> None:
    """List everybody who was ever admitted.

    Example: ssc server device list --json
    """
    access = _access(state)
    rows = [
        {"name": one.name, "kind": one.kind, "public_key": one.public, "added": one.added, "revoked": one.revoked}
        for one in access.members()
    ]
    if as_json:
        print_json({"required": access.required, "devices": rows})
        return
    print_table("Devices", ["name", "kind", "public_key", "added", "revoked"], [list(row.values()) for row in rows])
    click.echo("only these are let in" if access.required else "anyone is let in")


@device.command()
@_state_option
def config(state: Path) -> None:
    """Print the accounts for an outside nats-server. With them it admits the same devices and readers.

    Example: ssc server device config > /etc/nats/streamsplit.conf
    """
    access = _access(state)
    click.echo("# include this from nats-server's configuration, then: nats-server --signal reload")
    click.echo(f"# the server itself connects with --credentials {access.credentials.nkey}")
    click.echo(access.config(anyone=False), nl=False)


def _access(state: Path) -> Access:
    if not state.is_dir():
        raise UsageError(f"--state {state}: no such directory; give the one of `ssc server run`")
    return Access(state)


def _told(known: bool) -> str:
    return "The running broker knows." if known else "No embedded broker is running here; it will know at its start."
