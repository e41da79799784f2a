"""Options shared by several commands, each as one decorator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from runtime_edge.click_options import RenamedOption
from runtime_edge.formats import minisign
from runtime_edge.inference.profile import Profile, read_profile
from streamsplit_compile.cost.radios import DEFAULT_LINK, list_radios
from streamsplit_compile.cost.targets import Target, load_target

_Command = TypeVar("_Command", bound=Callable[..., Any])


class PathParam(click.Path):
    """A path, as a pathlib.Path."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)


def together(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """One decorator for several options, in the order in which `--help` lists them."""

    def with_all(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return with_all


def renamed(name: str, earlier: str, into: str, **settings: Any) -> Callable[[_Command], _Command]:
    """An option with another name in earlier versions; that name still works but is not shown."""
    return click.option(name, earlier, into, cls=RenamedOption, earlier=[earlier], **settings)


def bundle_argument(command: _Command) -> _Command:
    """The argument for a bundle directory."""
    return click.argument("bundle", type=PathParam())(command)


def json_option(command: _Command) -> _Command:
    """`--json`: print JSON for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def key_option(command: _Command) -> _Command:
    """`--key`: the secret key to sign with."""
    return click.option("--key", type=PathParam(), help="Secret key to sign with (`ssc key new`).")(command)


def pub_option(command: _Command) -> _Command:
    """`--pub`: the public key whose signature is required."""
    return click.option("--pub", type=PathParam(), help="Public key that must have signed it.")(command)


def link_option(command: _Command) -> _Command:
    """`--link`: the link whose radio energy is counted."""
    known = ", ".join(list_radios())
    return click.option(
        "--link",
        default=DEFAULT_LINK,
        show_default=True,
        help=f"Link whose radio energy is counted: {known}, or a TOML file.",
    )(command)


def profile_option(command: _Command) -> _Command:
    """`--profile`: costs measured on a device."""
    return click.option(
        "--profile", "profile_file", type=PathParam(), help="Measured costs (`ssc profile`, `ssc bench device`)."
    )(command)


def measured_profile(path: Path | None) -> Profile | None:
    """Read the file of `--profile`, and warn if it is from another kind of device. Raises FormatError."""
    if path is None:
        return None
    profile = read_profile(path)
    if profile.elsewhere:
        click.echo(
            f"warning: {path}: measured on {profile.elsewhere}, which is not the target {profile.target}", err=True
        )
    return profile


ENCODER_OPTIONS = ("factory", "sample_rate", "unsafe_load", "front_end")
"""The parameters that `encoder_options` passes to a command."""
encoder_options = together(
    click.option(
        "--factory",
        help="package.module:callable that builds the module for a plain state_dict; looked up in the working "
        "directory, then on PYTHONPATH.",
    ),
    click.option(
        "--sample-rate", type=click.IntRange(1000, 384000), help="Sample rate, Hz, if the encoder does not state it."
    ),
    click.option(
        "--unsafe-load", is_flag=True, help="Unpickle a module, which runs its code. Only for your own files."
    ),
    click.option(
        "--front-end",
        metavar="PRESET|FILE",
        help="Front end that makes the encoder's spectrogram: ast, clap, wav2vec2, whisper, or its "
        "preprocessor_config.json.",
    ),
)
"""Options to read an encoder's file that does not say everything itself."""


def parse_targets(text: str) -> list[Target]:
    """Parse targets: names such as `rpi4,m2`, or paths of TOML files. Raises UsageError."""
    return [load_target(name.strip()) for name in text.split(",") if name.strip()]


def read_key(path: Path | None) -> minisign.SecretKey | None:
    """Read the secret key, if one is given. Raises SignatureError."""
    return None if path is None else minisign.read_secret_key(path)


def read_pub(path: Path | None) -> minisign.PublicKey | None:
    """Read the public key, if one is given. Raises SignatureError."""
    return None if path is None else minisign.read_public_key(path)
