"""Addresses of brokers: which are refused, and that nothing secret in them is shown."""

import nats.errors
import pytest

from runtime_edge.errors import AccessError, UsageError
from runtime_edge.formats.credentials import (
    Address,
    Credentials,
    credentials_file,
    explain,
    new_seed,
    read_seed,
    servers,
    without_password,
)
from runtime_edge.transport.connection import Connection


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://pi:TopSecret@gateway:4222", "nats://***@gateway:4222"),
        ("nats://TopSecret@gateway", "nats://***@gateway"),
        ("pi:TopSecret@gateway:4222", "***@gateway:4222"),
        ("nats://pi:Top@Secret@gateway", "nats://***@gateway"),
        ("nats://pi:Top,Secret@gateway", "nats://***@gateway"),
        ("tls://a:4222,tls://pi:TopSecret@b:4222,tls://c", "tls://a:4222,tls://***@b:4222,tls://c"),
        ("nats://[::1]:4222", "nats://[::1]:4222"),
        ("gateway", "gateway"),
    ],
)
def test_an_address_is_shown_without_what_is_secret_in_it(url, shown):
    assert without_password(url) == shown
    address = Address(url)
    assert str(address) == shown
    assert "Secret" not in repr(address)
    assert "Secret" not in str(explain(url, Credentials(), OSError("refused")))


def test_a_link_knows_an_address_to_show_and_another_to_use():
    assert Connection("nats://pi:TopSecret@gateway:4222", "pi-1").url == "nats://***@gateway:4222"


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("", "an address is needed"),
        (" , ", "an address is needed"),
        ("mqtt://gateway:1883", "mqtt:// is not one of nats://, tls://"),
        ("nats://pi:TopSecret@gateway:high", "the port is not a number"),
        ("nats://gateway:42220000", "the port is not a number"),
        ("gateway:0", "the port is not a number"),
        ("nats://[::1", "the port is not a number"),
        ("nats://", "no host is named"),
        ("nats://gate way", "no host is named"),
        ("nats:/gateway", "nothing may follow the port"),
        ("nats://gateway:4222/stream", "nothing may follow the port"),
        ("nats://a,tls://b", "give all of a cluster's addresses as tls://, or none"),
    ],
)
def test_what_is_no_address_is_refused_before_anybody_connects(url, wrong):
    with pytest.raises(UsageError, match=wrong) as caught:
        servers(url)
    assert "Secret" not in str(caught.value)


def test_addresses_of_several_brokers_are_taken_one_by_one():
    assert servers("nats://a:4222, b:4223,nats://[::1]/") == ["nats://a:4222", "b:4223", "nats://[::1]/"]


def test_a_file_says_whose_seed_it_holds_and_a_refusal_repeats_it(tmp_path):
    seed, path = new_seed(), tmp_path / "pi-1.creds"
    path.write_bytes(credentials_file(seed, "pi-1, added on gateway for the server in /srv/ssc\x1b[2J"))
    assert path.read_text() == f"# pi-1, added on gateway for the server in /srv/ssc?[2J\n{seed}\n"
    assert read_seed(path) == seed
    refused = explain("nats://elsewhere", Credentials(nkey=path), nats.errors.AuthorizationError())
    assert isinstance(refused, AccessError)
    assert f"{path} (pi-1, added on gateway for the server in /srv/ssc?[2J); unknown or revoked there" in str(refused)


def test_a_file_of_0_1_0_holds_the_seed_alone(tmp_path):
    seed, path = new_seed(), tmp_path / "pi-1.creds"
    path.write_text(f"{seed}\n")
    assert read_seed(path) == seed
    refused = explain("nats://elsewhere", Credentials(nkey=path), nats.errors.AuthorizationError())
    assert f"refuses the credentials {path}; unknown" in str(refused)
