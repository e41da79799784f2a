"""Brokers that others run and that lack something: which setting, and how much."""

import asyncio
import contextlib
import logging
import re
import subprocess

import pytest
from peers import serving
from waiting import eventually

from runtime_edge.base.aio import cancel_all
from runtime_edge.errors import LinkError
from runtime_edge.formats import subjects
from runtime_server.broker.broker_process import broker_program
from runtime_server.broker.hub import Hub
from runtime_server.telemetry.service_watch import ServiceWatch

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
        ("{max_file: 20GB, max_streams: 3}", "it admits too few streams: set max_streams of the account to 9 at least"),
        (
            "{max_file: 10MB}",
            r"its JetStream store is too small: .* set max_file_store: 8GB .*, and max_file of the account",
        ),
        (
            "{max_file: 9GB, max_bytes_required: true}",
            "the account asks for a size of each stream: leave out max_bytes_re",
        ),
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


@pytest.mark.parametrize(
    ("limits", "setting"),
    [
        ("max_connections: 1", "it admits no more connections: raise max_connections in its configuration"),
        (
            "no_auth_user: a\naccounts { A { jetstream: enabled, limits { max_connections: 1 }, "
            "users: [{user: a, password: b}] } }",
            "it admits no more connections: raise max_connections in the limits of the account",
        ),
    ],
)
def test_a_broker_that_is_full_is_told_to_whoever_comes_next(tmp_path, free_port, limits, setting):
    """It says so and hangs up at once, while the other end is still introducing itself: now and then the reset arrives
    before what it said.
    """
    store = f'jetstream {{ store_dir: "{tmp_path}/store", max_file_store: 9GB }}\n{limits}'

    async def work(url):
        said = []
        async with Hub(url, "server"):
            while len(said) < 10 and not any(setting in text for text in said):
                with pytest.raises(LinkError) as caught:
                    await Hub(url, "status").connect()
                said.append(str(caught.value))
        assert setting in said[-1], said

    with outside_broker(tmp_path, free_port, store) as url:
        create(url)
        asyncio.run(work(url))


def test_a_broker_that_hangs_up_says_why(tmp_path, free_port):
    store = f'jetstream {{ store_dir: "{tmp_path}/store", max_file_store: 9GB }}\nmax_subscriptions: 2'

    async def ignore(message):
        pass

    async def work(url):
        async with Hub(url, "server") as hub:
            for _ in range(4):
                await hub.subscribe("evt.pi-1", ignore)

    with outside_broker(tmp_path, free_port, store) as url:
        create(url)
        with pytest.raises(LinkError, match="no more subscriptions: raise max_subscriptions in its configuration"):
            asyncio.run(work(url))


def test_partitions_without_room_for_their_consumers_are_told_once(tmp_path, free_port, generations, caplog):
    more = f'jetstream {{ store_dir: "{tmp_path}/store", max_file_store: 20GB }}\nno_auth_user: a\n'
    account = "accounts { A { jetstream: {max_file: 9GB, max_consumers: 1}, users: [{user: a, password: b}] } }"

    async def work(url):
        async with Hub(url, "server") as hub, serving(hub, generations) as ingest:
            watch = ServiceWatch(hub, ingest, range(subjects.PARTITIONS), period_s=0.05)
            task = asyncio.create_task(watch.run())

            async def three_are_refused():
                return sum(bool(reader.refused) for reader in ingest.consumers.values()) == subjects.PARTITIONS - 1

            await eventually(three_are_refused, "one consumer has found room")
            caplog.clear()
            watch.troubles.clear()
            await eventually(lambda: watch.troubles, "the watch has looked")
            await cancel_all([task])
            return watch.troubles

    with outside_broker(tmp_path, free_port, more + account) as url:
        create(url)
        troubles = asyncio.run(work(url))
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == troubles
    assert len(told) == 1
    assert re.fullmatch(
        r"partitions \d, \d and \d are not served: it admits no more consumers: raise max_consumers of the account, or "
        "leave it out",
        told[0],
    )
