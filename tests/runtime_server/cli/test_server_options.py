"""How commands find a server's broker and its key."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from runtime_edge.errors import FormatError, UsageError
from runtime_edge.formats.credentials import Address, Credentials
from runtime_server.cli.server_options import broker_option
from runtime_server.state.server_address import keep_address


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


@click.command()
@broker_option
def where(broker):
    """Say where one connects, and as whom."""
    known = broker.credentials
    click.echo(f"{broker.url} {known.nkey} {known.tls_ca} {known.check_hostname}")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], "nats://127.0.0.1:5222 ssc-server/server.nkey None True"),
        (["--state", "other"], "tls://gateway:4333 {here}/own.nkey {here}/ca.pem False"),
        (["--state", "other", "--tls-ca", "b.pem"], "tls://gateway:4333 {here}/own.nkey b.pem True"),
        (["--state", "other", "--credentials", "b.nkey"], "tls://gateway:4333 b.nkey {here}/ca.pem False"),
        (["--broker", "nats://localhost:1"], "nats://localhost:1 ssc-server/server.nkey None True"),
        (["--broker", "nats://gateway:1"], "nats://gateway:1 None None True"),
    ],
)
def test_a_server_that_has_run_says_where_its_broker_is(tmp_path, monkeypatch, arguments, found):
    monkeypatch.chdir(tmp_path)
    for name in ("ssc-server", "other"):
        Path(name).mkdir()
        (Path(name) / "server.nkey").touch()
    keep_address(Path("ssc-server"), Address("nats://127.0.0.1:5222", Credentials(Path("ssc-server/server.nkey"))))
    given = Credentials(Path("own.nkey"), tls_ca=Path("ca.pem"), check_hostname=False)
    keep_address(Path("other"), Address("tls://gateway:4333", given))
    assert CliRunner().invoke(where, arguments, catch_exceptions=False).output == found.format(here=tmp_path) + "\n"


def test_an_address_that_cannot_be_read_is_named_with_what_to_do(tmp_path):
    (tmp_path / "broker_address.json").write_text('{"url": 7}')
    with pytest.raises(FormatError, match=r"broker_address.json: .*url.*: start the server again, or give --broker"):
        CliRunner().invoke(where, ["--state", str(tmp_path)], catch_exceptions=False)
