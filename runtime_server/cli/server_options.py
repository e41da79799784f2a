"""How commands find a running server's broker: `--broker`, or the address in the server's `--state`."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import click

from runtime_edge.errors import UsageError
from runtime_edge.formats.credentials import Address, Credentials, servers
from runtime_server.broker.hub import Hub
from runtime_server.state.server_address import kept_address
from streamsplit_compile.cli.options import PathParam

DEFAULT_STATE = Path("ssc-server")
"""The default of a server's state directory."""
_DEFAULT_BROKER = "nats://127.0.0.1:4222"
_THIS_MACHINE = ("127.0.0.1", "::1", "localhost")
_STATE_HELP = (
    f"The server's state directory, whose keys are used [default: {DEFAULT_STATE}, for a broker on this machine]."
)
_Command = TypeVar("_Command", bound=Callable[..., Any])
_Result = TypeVar("_Result")


def server_option(command: _Command, state_help: str = _STATE_HELP, directory: bool = True) -> _Command:
    """Add `--broker` and its credentials, passed on as one Address `broker`, and the server's directory `state`.

    Without `directory`, `--state` may also be something other than a directory.
    """

    @click.option(
        "--broker", help=f"Broker address [default: the broker of the server in --state, or {_DEFAULT_BROKER}]."
    )
    @click.option("--state", type=PathParam(), help=state_help)
    @click.option(
        "--credentials",
        type=PathParam(),
        envvar="SSC_CREDENTIALS",
        help="Key for the broker: server.nkey of the server's state.",
    )
    @click.option(
        "--tls-ca", type=PathParam(), envvar="SSC_TLS_CA", help="Certificate authorities for checking a tls:// broker."
    )
    @functools.wraps(command)
    def with_address(
        broker: str | None, state: Path | None, credentials: Path | None, tls_ca: Path | None, **settings: Any
    ) -> Any:
        if directory and state is not None and not state.is_dir():
            raise UsageError(f"--state {state}: no such directory; give the one that `ssc server run` was given")
        found = _address(broker, state)
        if credentials is not None:
            found = replace(found, credentials=replace(found.credentials, nkey=credentials))
        if tls_ca is not None:
            found = replace(found, credentials=replace(found.credentials, tls_ca=tls_ca, check_hostname=True))
        return command(broker=found, state=state, **settings)

    return cast(_Command, with_address)


def broker_option(command: _Command) -> _Command:
    """`server_option` for commands that need only the Address."""

    @functools.wraps(command)
    def without_state(state: Path | None, **settings: Any) -> Any:
        return command(**settings)

    return server_option(cast(_Command, without_state))


def _address(broker: str | None, state: Path | None) -> Address:
    """The given broker, else the one of the server whose state this is, else the default one."""
    root = state or DEFAULT_STATE
    if broker is None and (kept := kept_address(root)) is not None:
        return kept
    url, own = broker or _DEFAULT_BROKER, root / "server.nkey"
    # Without `state` the key is for a broker on this machine only.
    here = state is not None or all(urlsplit(one).hostname in _THIS_MACHINE for one in servers(url))
    return Address(url, Credentials(nkey=own if here and own.exists() else None))


def ask(broker: Address, name: str, work: Callable[[Hub], Awaitable[_Result]]) -> _Result:
    """Run `work` on a connection of its own, which the broker knows as `name`; returns its result. Raises LinkError."""

    async def connected() -> _Result:
        async with Hub(broker, name) as hub:
            return await work(hub)

    return asyncio.run(connected())
