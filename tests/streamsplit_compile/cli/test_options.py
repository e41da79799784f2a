"""Options that several commands share."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from runtime_edge.errors import UsageError
from streamsplit_compile.cli.options import broker_option


@click.command()
@broker_option
def nkey(broker):
    """Say with which key one connects."""
    click.echo(str(broker.credentials.nkey))


@pytest.mark.parametrize(
    ("arguments", "used"),
    [
        ([], "ssc-server/server.nkey"),
        (["--broker", "nats://localhost:4333,nats://[::1]:4334"], "ssc-server/server.nkey"),
        (["--broker", "nats://gateway:4222"], None),
        (["--broker", "nats://gateway:4222", "--state", "other"], "other/server.nkey"),
        (["--state", "other"], "other/server.nkey"),
        (["--state", "empty"], None),
        (["--state", "other", "--credentials", "own.nkey"], "own.nkey"),
    ],
)
def test_the_servers_key_is_found_in_its_state(tmp_path, monkeypatch, arguments, used):
    monkeypatch.chdir(tmp_path)
    for name in ("ssc-server", "other", "empty"):
        Path(name).mkdir()
    for name in ("ssc-server", "other"):
        (Path(name) / "server.nkey").touch()
    assert CliRunner().invoke(nkey, arguments, catch_exceptions=False).output == f"{used}\n"


def test_a_state_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match="--state gone: no such directory; give the one that `ssc server run` was given"
    ):
        CliRunner().invoke(nkey, ["--state", "gone"], catch_exceptions=False)
