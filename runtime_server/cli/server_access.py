"""How commands on a server's machine find its two keys: one connects to its broker, the other signs for devices."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from runtime_edge.errors import UsageError
from runtime_edge.formats import minisign
from runtime_edge.formats.credentials import Address
from runtime_server.broker.hub import Hub
from runtime_server.cli.server_options import DEFAULT_STATE, ask
from runtime_server.state.server_state import signing_key_file
from streamsplit_compile.cli.options import read_key


def signing_key(given: Path | None, state: Path | None) -> minisign.SecretKey | None:
    """The key given, or else the one that the server of this state directory signs with. Raises SignatureError."""
    return read_key(given or signing_key_file(state or DEFAULT_STATE))


def check_owner(state: Path) -> None:
    """Raise UsageError if root would write files that the server's own user cannot read."""
    key = state / "server.nkey"
    if os.geteuid() == 0 and key.exists() and (owner := key.stat().st_uid) != 0:
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = f"#{owner}"
        raise UsageError(
            f"--state {state}: belongs to the user {name}, who could not read what root writes there; call it with "
            f"sudo -u {name}"
        )


def check_signed(broker: Address, key: minisign.SecretKey | None) -> None:
    """Check that the broker can be reached and that devices there would accept what this key signs.

    Raises LinkError, and UsageError if devices trust the server's key and `key` is another one or None.
    """
    trusted = ask(broker, "signing", Hub.signing_key)
    if trusted is None or (key is not None and key.public == trusted):
        return
    server = f"broker {broker}: its devices trust the server's key {_line(trusted)}"
    fix = "give the server's --state, or its signing key as --key"
    if key is None:
        raise UsageError(f"{server} and refuse what is not signed; {fix}")
    raise UsageError(f"{server} and would refuse what {_line(key.public)} signs; {fix}")


def _line(key: minisign.PublicKey) -> str:
    """A public key as `ssc server run` prints it when it starts."""
    return key.to_text().splitlines()[1]
