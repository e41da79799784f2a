"""The register of devices, and the commands that change it."""

import json
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner

from runtime_edge.errors import FormatError, SscError, UsageError
from runtime_edge.formats.credentials import Credentials, new_seed, public_key, read_seed
from runtime_server.broker.access import Access, SecurityConfig
from runtime_server.broker.broker_process import broker_program, embedded, outside
from runtime_server.cli.device_commands import device

SEED = "SUANNOXSOVSW2C2OZWOKL34QZO5JI7O4FCRAC7NXO6FL3FECPSQSTQXYA4"


def test_a_seed_and_its_public_key_are_what_nats_calls_an_nkey():
    import nkeys

    seed = new_seed()
    pair = nkeys.from_seed(bytearray(seed.encode()))
    assert (len(seed), seed[:2]) == (58, "SU")
    assert public_key(seed) == pair.public_key.decode()
    assert pair.verify(b"challenge", pair.sign(b"challenge"))
    assert new_seed() != seed


@pytest.mark.parametrize(
    "text", ["", "SU", "x" * 58, "é", "\0" * 100, SEED[:-1], SEED[:-2] + "AA", SEED[:9] + "B" + SEED[10:]]
)
def test_a_file_that_holds_no_seed_is_refused_by_name(tmp_path, text):
    (tmp_path / "pi-1.creds").write_text(text)
    with pytest.raises(FormatError, match=r"pi-1.creds: not an nkey seed .*; make one with `ssc server device add`"):
        read_seed(tmp_path / "pi-1.creds")


def test_a_key_of_an_account_is_refused(tmp_path):
    import os

    import nkeys

    (tmp_path / "a").write_bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_ACCOUNT))
    with pytest.raises(FormatError, match="but of an account"):
        read_seed(tmp_path / "a")


def test_files_that_do_not_fit_together_are_refused(tmp_path):
    (tmp_path / "file").write_text("not PEM")
    for credentials, what in [
        (Credentials(tls_ca=tmp_path / "file"), "file: not PEM"),
        (Credentials(tls_ca=tmp_path / "none"), "none: not PEM"),
        (Credentials(tls_cert=tmp_path / "file"), "--tls-cert and --tls-key go together"),
        (Credentials(tls_cert=tmp_path / "file", tls_key=tmp_path / "file"), "not a certificate and its key"),
        (Credentials(nkey=tmp_path / "none"), "none: cannot be read"),
    ]:
        with pytest.raises(SscError, match=what):
            credentials.options("tls://gateway:4222")


def test_a_device_is_added_once_and_after_a_revocation_again_with_another_key(tmp_path):
    access = Access(tmp_path)
    first = access.add("pi-1")
    with pytest.raises(UsageError, match="pi-1: was added already"):
        access.add("pi-1")
    access.revoke("pi-1")
    assert public_key(first) not in access.config()
    with pytest.raises(UsageError, match="pi-1: no such device was added"):
        access.revoke("pi-1")
    second = access.add("pi-1")
    assert public_key(second) in access.config()
    assert public_key(first) not in access.config()
    for name in ("Pi", "a.b", "*", ">", "", 'x"', "_anyone"):
        with pytest.raises(UsageError, match="use lower-case letters"):
            access.add(name)


def test_secrets_are_not_kept_and_files_are_the_owners_alone(tmp_path):
    tmp_path = tmp_path / "state"
    access = Access(tmp_path)
    seed, password = access.add("pi-1"), access.add_reader("phone")
    access.write()
    assert tmp_path.stat().st_mode & 0o077 == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "server.nkey"]
    assert all(seed not in path.read_text() for path in files)
    for path in (tmp_path / "server.nkey", tmp_path / "devices.json", tmp_path / "broker" / "accounts.conf"):
        assert path.stat().st_mode & 0o077 == 0
    assert password in (tmp_path / "broker" / "accounts.conf").read_text()
    access.revoke("phone")
    access.write()
    assert all(password not in path.read_text() for path in files)


def test_many_processes_may_add_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: Access(tmp_path).add(f"pi-{n}"), range(40)))
    assert len(Access(tmp_path).members()) == 40


@pytest.mark.parametrize(
    ("auth", "host", "before", "after"),
    [
        (None, "127.0.0.1", False, True),
        (None, "localhost", False, True),
        (None, "::1", False, True),
        (None, "0.0.0.0", True, True),
        (None, "gateway", True, True),
        (None, "192.168.1.2", True, True),
        (True, "127.0.0.1", True, True),
        (False, "0.0.0.0", False, False),
    ],
)
def test_when_credentials_are_asked_for(tmp_path, auth, host, before, after):
    broker = embedded(tmp_path, host, 4222, None, SecurityConfig(auth=auth))
    access = Access(tmp_path)
    assert access.required is before
    access.add("pi-1")
    assert access.required is after
    access.revoke("pi-1")
    assert access.required is after, "the last device's end must not open the door"
    assert ("no_auth_user" in access.config()) is not after
    open_to_others = host == "0.0.0.0" and auth is False
    assert broker.lets_in.startswith("warning: anyone") is open_to_others


def test_a_damaged_register_is_refused_and_left_alone(tmp_path):
    (tmp_path / "devices.json").write_text('{"policy": "open"}')
    with pytest.raises(FormatError, match=r"devices.json: Invalid enum value"):
        Access(tmp_path).add("pi-1")
    assert (tmp_path / "devices.json").read_text() == '{"policy": "open"}'


def test_options_that_do_not_go_together_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    file = tmp_path / "file"
    for security, what in [
        (SecurityConfig(tls_cert=file), "the broker needs both"),
        (SecurityConfig(tls_ca=file), "the broker needs both"),
        (SecurityConfig(tls_cert=file, tls_key=tmp_path / "none"), "none: no such file"),
        (SecurityConfig(credentials=file), "outside --broker"),
    ]:
        with pytest.raises(UsageError, match=what):
            embedded(tmp_path, "127.0.0.1", 4222, None, security)
    with pytest.raises(UsageError, match="ssc server device config"):
        outside("nats://elsewhere:4222", SecurityConfig(auth=True))


def test_the_printed_configuration_is_one_nats_server_takes(tmp_path):
    (tmp_path / "state").mkdir()
    state = ["--state", str(tmp_path / "state")]
    _ssc("add", "pi-1", "-o", tmp_path / "key", *state)
    _ssc("add", "phone", "--reader", *state)
    (tmp_path / "access.conf").write_text(_ssc("config", *state))
    (tmp_path / "nats.conf").write_text('include "access.conf"\n')
    checked = subprocess.run([broker_program(), "-t", "-c", tmp_path / "nats.conf"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_the_commands_say_what_they_did(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "keys").mkdir()
    state = ["--state", str(tmp_path / "state")]
    text = _ssc("add", "pi-1", "pi-2", "-o", tmp_path / "keys", *state)
    assert "pi-1: key in" in text
    assert "it will know at its start" in text
    key = tmp_path / "keys" / "pi-1.creds"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_text().startswith(f"# pi-1, added on {platform.node()} for the server in {tmp_path / 'state'}\nSU")
    listed = json.loads(_ssc("list", "--json", *state))
    assert listed["required"] is True
    assert [one["name"] for one in listed["devices"]] == ["pi-1", "pi-2"]
    assert listed["devices"][0]["public_key"] == public_key(read_seed(key))
    with pytest.raises(UsageError, match="exists; move it away"):
        _ssc("add", "pi-1", "-o", key, *state)
    _ssc("revoke", "pi-2", *state)
    assert "only these are let in" in _ssc("list", *state)
    assert json.loads(_ssc("list", "--json", *state))["devices"][1]["revoked"]
    with pytest.raises(UsageError, match="existing directory for the keys of 2"):
        _ssc("add", "pi-3", "pi-4", "-o", tmp_path / "none", *state)
    with pytest.raises(UsageError, match="no such directory"):
        _ssc("list", "--state", str(tmp_path / "elsewhere"))


def _ssc(*arguments):
    result = CliRunner().invoke(device, [str(argument) for argument in arguments], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.output
