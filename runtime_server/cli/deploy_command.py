"""`ssc deploy`: puts a bundle and its tables on the broker and releases it to the devices."""

from __future__ import annotations

from pathlib import Path

import click

from runtime_edge.base.text import size
from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.credentials import Address
from runtime_server.broker.hub import Hub
from runtime_server.cli.server_access import check_signed, signing_key
from runtime_server.cli.server_options import ask, server_option
from streamsplit_compile.cli.options import bundle_argument, json_option, key_option
from streamsplit_compile.cli.printing import print_json


@click.command()
@bundle_argument
@server_option
@key_option
@json_option
def deploy(bundle: Path, broker: Address, state: Path | None, key: Path | None, as_json: bool) -> None:
    """Publish a bundle and its tables to devices. They are signed with --key or the key of --state.

    Example: ssc deploy bundle/ --broker nats://127.0.0.1:4222 --key signing.key
    """
    opened, secret = open_bundle(bundle), signing_key(key, state)
    check_signed(broker, secret)
    targets = list(opened.manifest.info.targets)
    sent = ask(broker, "deploy", lambda hub: _deploy(hub, opened, secret))
    if as_json:
        print_json({"bytes": sent, "targets": targets})
    else:
        click.echo(f"{bundle}: {size(sent)} new on {broker}, released to {', '.join(targets)}")


async def _deploy(hub: Hub, bundle: Bundle, key: minisign.SecretKey | None) -> int:
    """Publish the bundle, its tables and its release; returns how many bytes were new on the broker."""
    sent = await hub.publish_bundle(bundle)
    for target in bundle.manifest.info.targets:
        await hub.put_table(bundle.table(target), key)
        await hub.release(bundle, target, key)
    return sent
