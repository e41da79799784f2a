"""Commands on a server's machine sign with the server's key, and push nothing that devices refuse."""

import os
import pwd

import pytest
from click.testing import CliRunner

from runtime_edge.errors import UsageError
from runtime_edge.formats import minisign
from runtime_edge.formats.credentials import Address
from runtime_server.broker.access import Access
from runtime_server.cli.server_access import check_owner, check_signed, signing_key
from runtime_server.cli.server_commands import server
from runtime_server.state.server_state import ServerState


def test_the_servers_key_is_used_unless_another_is_given(tmp_path, signing_key_path):
    assert signing_key(None, tmp_path / "nowhere") is None
    own = ServerState(tmp_path / "server").signing_key(None)
    assert signing_key(None, tmp_path / "server").public == own.public
    given = minisign.read_secret_key(signing_key_path)
    assert signing_key(signing_key_path, tmp_path / "server").public == given.public
    ServerState(tmp_path / "server").signing_key(signing_key_path)  # `ssc server run --key`
    assert signing_key(None, tmp_path / "server").public == given.public


def test_what_devices_would_refuse_is_refused_before_it_is_pushed(play, broker, signing_key):
    play(lambda hub: hub.signing_key())
    address = Address(broker.url)
    check_signed(address, None)  # no server has announced a key: devices without one take anything
    play(lambda hub: hub.put_signing_key(signing_key.public))
    check_signed(address, signing_key)
    announced, other = key_line(signing_key), minisign.generate_key()
    with pytest.raises(UsageError) as unsigned:
        check_signed(address, None)
    assert f"devices trust the server's key {announced} and refuse what is not signed; give" in str(unsigned.value)
    with pytest.raises(UsageError) as foreign:
        check_signed(address, other)
    assert f"trust the server's key {announced} and would refuse what {key_line(other)} signs" in str(foreign.value)
    assert str(foreign.value).endswith("; give the server's --state, or its signing key as --key")


def key_line(secret):
    """As `ssc server run` prints it."""
    return secret.public.to_text().splitlines()[1]


@pytest.fixture
def signing_key_path(tmp_path, signing_key):
    minisign.write_key_pair(signing_key, tmp_path / "given.key")
    return tmp_path / "given.key"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
@pytest.mark.parametrize(
    "command",
    [["device", "add", "pi-1"], ["device", "revoke", "pi-1"], ["run", "encoder.pt", "bundle/"]],
    ids=" ".join,
)
def test_root_writes_nothing_that_the_server_s_own_user_could_not_read(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "server"
    assert Access(state).credentials.nkey
    Access(state).add("pi-0")
    for path in (state, *state.rglob("*")):
        os.chown(path, 65534, 65534)
    before = sorted(path.name for path in state.rglob("*"))
    with pytest.raises(UsageError, match=rf"belongs to the user {pwd.getpwuid(65534).pw_name}, .*sudo -u"):
        raise CliRunner().invoke(server, [*command, "--state", str(state)]).exception
    assert sorted(path.name for path in state.rglob("*")) == before
    os.chown(state / "server.nkey", 0, 0)
    check_owner(state)
