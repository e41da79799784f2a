"""Who is let in: wrong and revoked credentials, the first device and the last, operators."""

import asyncio

import harness
import nats.errors
import pytest
from nats.aio.client import Client

from runtime_edge.errors import AccessError, LinkError
from runtime_edge.formats import subjects
from runtime_edge.formats.credentials import Address, Credentials
from runtime_edge.transport.connection import Connection
from runtime_server.broker.access import Access
from runtime_server.broker.broker_process import Broker
from runtime_server.broker.hub import Hub


def test_anothers_credentials_under_ones_own_name_are_refused_and_tried_again_slowly(guarded, caplog):
    async def work():
        async with guarded.running():
            link = Connection(guarded.broker.url, "pi-1", guarded.credentials("pi-2"))
            with pytest.raises(AccessError, match=r"the credentials .*pi-2.creds are not pi-1's"):
                await link.connect()
            trying = asyncio.create_task(link.connect_with_retries())
            log = guarded.directory / "broker" / "broker.log"
            await harness.eventually(lambda: log.read_text().count("Subscription Violation") >= 2)
            for _ in range(5):  # which takes as long as five more attempts
                async with guarded.linked("pi-2"):
                    pass
            trying.cancel()
            assert not link.connected
            await link.close()
        return log.read_text()

    log = asyncio.run(work())
    assert log.count("Subscription Violation") == 2, "one attempt and one more: not a tight loop"


async def until_lost(link):
    """Until a connection is gone, however briefly."""
    while link.connected:
        await asyncio.sleep(0.005)


def test_a_revoked_device_is_out_at_once_says_so_and_comes_back_with_new_credentials(guarded):
    async def work():
        async with (
            guarded.running() as hub,
            guarded.linked("pi-1", refused_pause_s=1.0) as link,
            guarded.linked("pi-2") as other,
        ):
            await harness.stored(link, "pi-1.boot.0", 0, b"frame")
            neighbour = asyncio.create_task(until_lost(other))
            guarded.access.revoke("pi-1")
            assert guarded.access.reload()
            await harness.eventually(lambda: "unknown or revoked" in link.trouble)
            assert not link.connected
            with pytest.raises(LinkError):
                await harness.stored(link, "pi-1.boot.1", 1, b"frame", 0.5)
            guarded.add("pi-1")
            guarded.access.reload()
            await harness.eventually(lambda: link.connected)
            await harness.stored(link, "pi-1.boot.1", 1, b"frame")
            assert not neighbour.done(), "others were disconnected"
            neighbour.cancel()
            assert hub.client.is_connected
            return (await hub.stream.stream_info(subjects.STREAM)).state.messages

    assert asyncio.run(work()) == 2


def test_anyone_is_let_in_until_the_first_device_is_added_and_not_again_after_the_last_is_revoked(tmp_path):
    access = Access(tmp_path)
    broker = Broker(tmp_path / "broker", port=harness.free_port(), access=access)

    async def anonymous():
        client = Client()
        try:
            await client.connect(broker.url, allow_reconnect=False, error_cb=_quiet, max_reconnect_attempts=1)
        except nats.errors.Error:
            await client.close()
            raise
        return client

    async def work():
        await broker.start()
        hub = Hub(broker.address, "server")
        try:
            await hub.connect(create=True)
            client = await anonymous()
            await client.jetstream().account_info()
            access.add("pi-1")
            access.reload()
            await harness.eventually(lambda: client.is_closed)
            with pytest.raises(nats.errors.Error, match="Authorization Violation"):
                await anonymous()
            with pytest.raises(AccessError, match="asks for credentials"):
                await Hub(broker.url, "stranger").connect()
            access.revoke("pi-1")
            assert access.reload()
            with pytest.raises(nats.errors.Error, match="Authorization Violation"):
                await anonymous()
            assert hub.client.is_connected
        finally:
            await hub.close()
            await broker.stop()

    asyncio.run(work())


async def _quiet(exc):
    pass


def test_an_operator_connects_with_the_servers_credentials(guarded):
    async def work():
        async with guarded.running() as hub:
            await (await hub.stream.key_value(subjects.PRESENCE)).put("pi-1", b"{}")
            operator = Hub(Address(guarded.broker.url, Credentials(nkey=guarded.directory / "server.nkey")), "operator")
            await operator.connect()
            try:
                return await operator.presence()
            finally:
                await operator.close()

    assert asyncio.run(work()) == {"pi-1": {}}
