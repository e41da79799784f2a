"""Options that several commands share, each one decorator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import click

from runtime_edge.errors import UsageError
from runtime_edge.formats import minisign
from runtime_edge.formats.credentials import Address, Credentials, servers
from runtime_edge.inference.profile import Profile, read_profile
from streamsplit_compile.cost.radios import DEFAULT_LINK, list_radios
from streamsplit_compile.cost.targets import Target, load_target

DEFAULT_STATE = Path("ssc-server")
"""A server's state directory where none is given."""
_THIS_MACHINE = ("127.0.0.1", "::1", "localhost")
_STATE_HELP = (
    f"The server's state directory, whose keys are used [default: {DEFAULT_STATE}, for a broker on this machine]."
)
_Command = TypeVar("_Command", bound=Callable[..., Any])


class PathParam(click.Path):
    """A path, as pathlib knows it."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)


def together(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """One decorator for several options, in the order in which `--help` lists them."""

    def with_all(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return with_all


def bundle_argument(command: _Command) -> _Command:
    """A bundle directory."""
    return click.argument("bundle", type=PathParam())(command)


def json_option(command: _Command) -> _Command:
    """`--json`: for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def key_option(command: _Command) -> _Command:
    """`--key`: sign with it."""
    return click.option("--key", type=PathParam(), help="Secret key to sign with (`ssc key new`).")(command)


def pub_option(command: _Command) -> _Command:
    """`--pub`: require its signature."""
    return click.option("--pub", type=PathParam(), help="Public key that must have signed it.")(command)


def link_option(command: _Command) -> _Command:
    """`--link`: whose radio is paid for."""
    known = ", ".join(list_radios())
    return click.option(
        "--link", default=DEFAULT_LINK, show_default=True, help=f"Whose radio is paid for: {known}, or a TOML file."
    )(command)


def profile_option(command: _Command) -> _Command:
    """`--profile`: what was measured on a device."""
    return click.option(
        "--profile", "profile_file", type=PathParam(), help="Measured costs (`ssc profile`, `ssc bench device`)."
    )(command)


def measured_profile(path: Path | None) -> Profile | None:
    """What `--profile` names, with a warning when it comes from another kind of device. Raises FormatError."""
    if path is None:
        return None
    profile = read_profile(path)
    if profile.elsewhere:
        click.echo(f"warning: {path}: measured on {profile.elsewhere}, which is no {profile.target}", err=True)
    return profile


ENCODER_OPTIONS = ("factory", "sample_rate", "unsafe_load", "front_end")
"""What `encoder_options` gives a command."""
encoder_options = together(
    click.option(
        "--factory",
        help="package.module:callable that builds the module for a plain state_dict; looked for in the working "
        "directory, then on PYTHONPATH.",
    ),
    click.option("--sample-rate", type=click.IntRange(1000, 384000), help="Hz, where the encoder does not say."),
    click.option("--unsafe-load", is_flag=True, help="Unpickle a module, running its code. For your own files."),
    click.option(
        "--front-end",
        metavar="PRESET|FILE",
        help="What makes the spectrogram that the encoder takes: ast, clap, wav2vec2, whisper, or its "
        "preprocessor_config.json.",
    ),
)
"""How to read an encoder's file that does not say it all itself."""


def server_option(command: _Command, state_help: str = _STATE_HELP, directory: bool = True) -> _Command:
    """`--broker`, and how to be let in there, as one Address `broker`; `state`, the server's directory where given.

    Without `directory` something else may stand there, too.
    """

    @click.option("--broker", default="nats://127.0.0.1:4222", show_default=True, help="Broker address.")
    @click.option(
        "--state",
        type=PathParam(),
        help=state_help,
    )
    @click.option(
        "--credentials",
        type=PathParam(),
        envvar="SSC_CREDENTIALS",
        help="Key for the broker: server.nkey of the server's state.",
    )
    @click.option(
        "--tls-ca", type=PathParam(), envvar="SSC_TLS_CA", help="Authorities to check a tls:// broker against."
    )
    @functools.wraps(command)
    def with_address(
        broker: str, state: Path | None, credentials: Path | None, tls_ca: Path | None, **settings: Any
    ) -> Any:
        if directory and state is not None and not state.is_dir():
            raise UsageError(f"--state {state}: no such directory; give the one that `ssc server run` was given")
        nkey = credentials or _own_nkey(broker, state)
        return command(broker=Address(broker, Credentials(nkey=nkey, tls_ca=tls_ca)), state=state, **settings)

    return cast(_Command, with_address)


def broker_option(command: _Command) -> _Command:
    """`server_option` for commands that need the Address alone."""

    @functools.wraps(command)
    def without_state(state: Path | None, **settings: Any) -> Any:
        return command(**settings)

    return server_option(cast(_Command, without_state))


def _own_nkey(broker: str, state: Path | None) -> Path | None:
    """The key of the server whose state this is, for its broker; without `state` only for a broker on this machine."""
    own = (state or DEFAULT_STATE) / "server.nkey"
    here = state is not None or all(urlsplit(one).hostname in _THIS_MACHINE for one in servers(broker))
    return own if here and own.exists() else None


def parse_targets(text: str) -> list[Target]:
    """Targets from `rpi4,m2` or paths of TOML files. Raises UsageError."""
    return [load_target(name.strip()) for name in text.split(",") if name.strip()]


def read_key(path: Path | None) -> minisign.SecretKey | None:
    """The secret key, when one is given. Raises SignatureError."""
    return None if path is None else minisign.read_secret_key(path)


def read_pub(path: Path | None) -> minisign.PublicKey | None:
    """The public key, when one is given. Raises SignatureError."""
    return None if path is None else minisign.read_public_key(path)
