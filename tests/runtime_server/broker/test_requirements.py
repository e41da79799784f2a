"""Brokers that others run and that lack something: which setting, and how much."""

import asyncio
import contextlib
import logging
import subprocess

import pytest
from waiting import eventually

from runtime_edge.errors import LinkError
from runtime_server.broker.broker_process import broker_program
from runtime_server.broker.hub import Hub

pytestmark = pytest.mark.integration


@contextlib.contextmanager
def outside_broker(tmp_path, port, more=""):
    config = tmp_path / "nats.conf"
    config.write_text(f'listen: "127.0.0.1:{port}"\n{more}\n')
    with subprocess.Popen([broker_program(), "-c", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            yield f"nats://127.0.0.1:{port}"
        finally:
            process.terminate()


def create(url):
    """Connect as a server does, once the broker listens."""

    async def connected():
        hub = Hub(url, "server")
        try:
            await hub.connect(create=True)
        except LinkError as exc:
            if "cannot connect" not in str(exc):
                raise
            return False
        finally:
            await hub.close()
        return True

    asyncio.run(eventually(connected, "the broker listens"))


def test_a_broker_without_jetstream_is_told_to_have_it(tmp_path, free_port):
    with (
        outside_broker(tmp_path, free_port) as url,
        pytest.raises(LinkError, match="JetStream is off there; start nats-server with -js"),
    ):
        create(url)


def test_a_store_that_is_too_small_is_told_how_large_to_be(tmp_path, free_port):
    store = f'jetstream {{ store_dir: "{tmp_path}/store", max_file_store: 1GB }}'
    with (
        outside_broker(tmp_path, free_port, store) as url,
        pytest.raises(LinkError, match=r"store is too small: .* reserves 4 GiB; set max_file_store: 8GB"),
    ):
        create(url)


def test_small_payloads_are_a_warning_with_the_setting(tmp_path, free_port, caplog):
    store = f'jetstream {{ store_dir: "{tmp_path}/store", max_file_store: 8GB }}'
    with outside_broker(tmp_path, free_port, store) as url, caplog.at_level(logging.WARNING):
        create(url)
    assert "takes frames of 1048576 bytes at most; set max_payload: 8388608 in its configuration" in caplog.text


@pytest.mark.parametrize(
    ("limits", "setting"),
    [
        ("{max_file: 20GB, max_streams: 3}", "it admits no more streams: raise max_streams of the account"),
        ("{max_file: 10MB}", r"its JetStream store is too small: .* set max_file_store"),
        ("disabled", "JetStream is off for the account there: set jetstream: enabled in it"),
    ],
)
def test_limits_of_an_account_are_named_by_their_setting(tmp_path, free_port, limits, setting):
    more = f'jetstream {{ store_dir: "{tmp_path}/store", max_file_store: 20GB }}\nno_auth_user: a\n'
    user = "users: [{user: a, password: b}]"
    with (
        outside_broker(tmp_path, free_port, f"{more}accounts {{ A {{ jetstream: {limits}, {user} }} }}") as url,
        pytest.raises(LinkError, match=setting) as caught,
    ):
        create(url)
    assert "is a broker" not in str(caught.value)


def test_a_user_without_rights_is_told_which_is_missing(tmp_path, free_port):
    more = f'jetstream {{ store_dir: "{tmp_path}/store", max_file_store: 20GB }}\nno_auth_user: a\n'
    user = '{user: a, password: b, permissions: {publish: ["act.>"]}}'
    with (
        outside_broker(tmp_path, free_port, f"{more}authorization {{ users: [{user}] }}") as url,
        pytest.raises(LinkError, match=r'publish to "\$js\.api.*": allow it in the permissions of this user there'),
    ):
        create(url)
