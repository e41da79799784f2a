"""Credentials on a real broker: what a device may do, and what nobody may do in another's name."""

import asyncio
import contextlib
import json
import shutil
import subprocess

import harness
import nats
import nats.errors
import nats.js.errors
import pytest
from nats.aio.client import Client
from nats.js.api import ConsumerConfig

from runtime_edge.base.broker_errors import flush
from runtime_edge.errors import AccessError, LinkError, UsageError
from runtime_edge.formats import subjects
from runtime_edge.formats.credentials import Address, Credentials
from runtime_edge.formats.wire import Reply, encode_reply
from runtime_edge.transport.connection import Link
from runtime_server.broker.access import Access
from runtime_server.broker.broker_process import Broker, BrokerTls
from runtime_server.broker.hub import Hub

pytestmark = pytest.mark.timeout(120)


class Guarded:
    """A broker that lets in pi-1, pi-2 and the server."""

    def __init__(self, directory, tls=None):
        self.access, self.directory = Access(directory), directory
        self.broker = Broker(directory / "broker", port=harness.free_port(), access=self.access, tls=tls)
        for name in ("pi-1", "pi-2"):
            self.add(name)

    def add(self, name):
        (self.directory / f"{name}.creds").write_text(self.access.add(name))

    def credentials(self, name, **more):
        return Credentials(nkey=self.directory / f"{name}.creds", **more)

    @contextlib.asynccontextmanager
    async def running(self):
        """A hub on the running broker."""
        await self.broker.start()
        hub = Hub(self.broker.address, "server")
        try:
            await hub.connect(create=True)
            yield hub
        finally:
            await hub.close()
            await self.broker.stop()

    @contextlib.asynccontextmanager
    async def linked(self, name="pi-1", late=lambda reply: None):
        link = Link(self.broker.url, name, "boot", late, self.credentials(name))
        try:
            await link.connect()
            yield link
        finally:
            await link.close()

    @contextlib.asynccontextmanager
    async def raw(self, name):
        """A client of the library alone, and the subjects the broker has denied it."""
        denied = []

        async def on_error(exc):
            denied.append(str(exc))

        options = self.credentials(name).options(self.broker.url)
        options["skip_subject_validation"] = True  # an attacker's client would not stop itself
        client = await nats.connect(
            self.broker.url, error_cb=on_error, inbox_prefix=subjects.inbox(name), allow_reconnect=False, **options
        )
        try:
            yield client, denied
        finally:
            await client.close()


@pytest.fixture
def guarded(tmp_path):
    return Guarded(tmp_path)


def test_a_device_with_its_own_credentials_does_all_it_needs(guarded):
    seen = []

    async def on_change(key, value):
        seen.append((key, value))

    async def work():
        async with guarded.running() as hub, guarded.linked("pi-1") as link:
            tables = await hub.stream.key_value(subjects.TABLES)
            await tables.put("_all.rpi4", b"for all")
            for bucket in (subjects.TABLES, subjects.HEADS):
                await link.watch(bucket, ["_all.rpi4", "pi-1.rpi4"], on_change)
            await link.watch(subjects.RELEASES, ["rpi4"], on_change)
            await tables.put("pi-1.rpi4", b"own")
            await tables.put("pi-2.rpi4", b"another's")
            await (await hub.stream.key_value(subjects.RELEASES)).put("rpi4", b"release")
            await (await hub.stream.object_store(subjects.BUNDLES)).put("assets/a", b"bundle")
            assert await link.fetch("assets/a", 10) == b"bundle"
            assert await link.value(subjects.RELEASES, "rpi4") == b"release"
            await link.put_presence(b'{"well": true}')
            assert await hub.presence() == {"pi-1": {"well": True}}
            events = asyncio.Queue()
            await hub.subscribe(subjects.events("pi-1"), events.put)
            await link.publish(subjects.events("pi-1"), b"event")
            assert (await events.get()).data == b"event"
            await harness.stored(link, "pi-1.boot.0", 0, b"frame")
            stored = await hub.stream.get_msg(subjects.STREAM, 1)
            answer = asyncio.get_running_loop().create_future()
            link.expect(0, 60.0, answer.set_result)
            await hub.client.publish(stored.headers[subjects.REPLY_HEADER], encode_reply(Reply(0, 1, "ok", 0)))
            assert await answer is not None
            await harness.eventually(lambda: len(seen) == 3)

    asyncio.run(work())
    assert sorted(seen) == [("_all.rpi4", b"for all"), ("pi-1.rpi4", b"own"), ("rpi4", b"release")]


def test_a_device_cannot_publish_in_anothers_name_nor_what_is_the_servers(guarded):
    partition = subjects.partition("pi-1")
    forbidden = [
        subjects.frames("pi-1"),
        f"act.{(subjects.partition('pi-2') + 1) % subjects.PARTITIONS}.pi-2",
        f"{subjects.frames('pi-2')}.more",
        f"act.{partition}.nobody",
        subjects.events("pi-1"),
        "$KV.presence.pi-1",
        "$KV.tables._all.rpi4",
        "$KV.tables.pi-2.rpi4",
        "$KV.heads._all.rpi4",
        "$KV.releases.rpi4",
        "$KV.releases._key",
        "$O.bundles.M.YXNzZXRz",
        "$O.bundles.C.chunk",
        "_INBOX.pi-1.connection.0",
        "_INBOX.pi-2.connection.0",
        "news.tables._all.rpi4",
        "news.releases.rpi4",
        "srv.status",
        "$SYS.REQ.SERVER.PING",
        "anything",
    ]
    overheard = set()

    async def on_message(message):
        if message.data == b"forged":
            overheard.add(message.subject)

    async def work():
        async with guarded.running() as hub, guarded.raw("pi-2") as (client, denied):
            for subject in (">", "$KV.>", "$O.>", "_INBOX.pi-1.>", "_INBOX.pi-2.>"):
                await hub.subscribe(subject, on_message)
            for subject in forbidden:
                await client.publish(subject, b"forged", headers={"Nats-Msg-Id": "pi-1.boot.0"})
            await client.publish(subjects.events("pi-2"), b"forged")  # allowed, and after all that is not
            await harness.eventually(lambda: subjects.events("pi-2") in overheard)
            await harness.eventually(lambda: len(denied) >= len(forbidden))
            states = [(await hub.stream.stream_info(f"KV_{name}")).state.messages for name in ("tables", "releases")]
            return denied, states

    denied, states = asyncio.run(work())
    assert overheard == {subjects.events("pi-2")}
    assert states == [0, 0]
    text = "\n".join(denied)
    for subject in forbidden:
        assert f'permissions violation for publish to "{subject.lower()}"' in text.lower()


def test_a_device_cannot_listen_to_others(guarded):
    forbidden = [
        ">", "*", "*.>", "_INBOX.>", "_INBOX.*.>", "_INBOX.pi-1.>", "_INBOX.pi-1.*.*", "act.>", subjects.frames("pi-1"),
        subjects.frames("pi-2"), "evt.>", subjects.events("pi-1"), "$KV.>", "$KV.tables.pi-1.rpi4", "$KV.presence.>",
        "news.>", "news.tables.>", "news.tables.*", "news.tables.*.*", "news.tables.*.>", "news.*.pi-2.>",
        "news.tables.pi-1.rpi4", "news.presence.>", "news.heads.pi-1.m2",
        "$O.>", "$JS.>", "$JS.API.>", "$JS.EVENT.>", "$SYS.>", "srv.>",
    ]  # fmt: skip

    async def work():
        async with guarded.running() as hub, guarded.raw("pi-2") as (client, denied), guarded.linked("pi-1") as link:
            heard = []

            async def on_message(message):
                heard.append(message)

            for subject in forbidden:
                await client.subscribe(subject, cb=on_message)
                await client.subscribe(subject, "server", cb=on_message)
            await harness.eventually(lambda: len(denied) >= 2 * len(forbidden))
            await harness.stored(link, "pi-1.boot.0", 0, b"secret")
            await link.publish(subjects.events("pi-1"), b"secret")
            await link.put_presence(b'{"secret": 1}')
            stored = await hub.stream.get_msg(subjects.STREAM, 1)
            await hub.client.publish(stored.headers[subjects.REPLY_HEADER], b"the answer to pi-1")
            await (await hub.stream.key_value(subjects.TABLES)).put("pi-1.rpi4", b"pi-1's table")
            await harness.eventually(lambda: link.bad_replies == 1)  # the answer did reach the one it was for
            await flush(client)  # and what the broker sent pi-2 before has come
            return denied, heard

    denied, heard = asyncio.run(work())
    assert heard == []
    text = "\n".join(denied).lower()
    for subject in forbidden:
        assert text.count(f'permissions violation for subscription to "{subject.lower()}"') == 2, subject


def test_a_device_cannot_ask_jetstream_for_anything_but_its_own(guarded):
    consumer = {"stream_name": "ACTIVATIONS", "config": {"deliver_subject": "_INBOX.pi-2.spy", "ack_policy": "none"}}
    own = json.dumps({"last_by_subj": "$KV.tables.pi-1.rpi4"})
    requests = [
        ("$JS.API.CONSUMER.CREATE.ACTIVATIONS", json.dumps(consumer)),
        ("$JS.API.CONSUMER.CREATE.ACTIVATIONS.spy", json.dumps(consumer)),
        ("$JS.API.CONSUMER.CREATE.ACTIVATIONS.spy.act.>", json.dumps(consumer)),
        ("$JS.API.CONSUMER.DURABLE.CREATE.ACTIVATIONS.spy", json.dumps(consumer)),
        ("$JS.API.CONSUMER.CREATE.KV_tables", json.dumps(consumer | {"stream_name": "KV_tables"})),
        ("$JS.API.CONSUMER.CREATE.OBJ_bundles", json.dumps(consumer | {"stream_name": "OBJ_bundles"})),
        ("$JS.API.CONSUMER.MSG.NEXT.ACTIVATIONS.server-0", b"1"),
        ("$JS.API.CONSUMER.DELETE.ACTIVATIONS.server-0", b""),
        ("$JS.API.CONSUMER.LIST.ACTIVATIONS", b""),
        ("$JS.ACK.ACTIVATIONS.server-0.1.1.1.1.0", b"+ACK"),
        ("$JS.API.STREAM.DELETE.ACTIVATIONS", b""),
        ("$JS.API.STREAM.PURGE.KV_tables", b""),
        ("$JS.API.STREAM.UPDATE.ACTIVATIONS", json.dumps({"name": "ACTIVATIONS", "subjects": ["act.>"]})),
        ("$JS.API.STREAM.CREATE.SPY", json.dumps({"name": "SPY", "subjects": ["evt.>"]})),
        ("$JS.API.STREAM.INFO.ACTIVATIONS", b""),
        ("$JS.API.STREAM.MSG.GET.ACTIVATIONS", json.dumps({"seq": 1})),
        ("$JS.API.STREAM.MSG.GET.KV_tables", own),
        ("$JS.API.STREAM.MSG.DELETE.OBJ_bundles", json.dumps({"seq": 1})),
        ("$JS.API.DIRECT.GET.ACTIVATIONS", json.dumps({"seq": 1})),
        ("$JS.API.DIRECT.GET.KV_tables", own),
        ("$JS.API.DIRECT.GET.KV_tables.$KV.tables.pi-1.rpi4", b""),
        ("$JS.API.DIRECT.GET.KV_tables.$KV.tables.*.rpi4", b""),
        ("$JS.API.DIRECT.GET.KV_tables.$KV.tables.*.*", b""),
        ("$JS.API.DIRECT.GET.KV_tables.$KV.tables.>", b""),
        ("$JS.API.DIRECT.GET.KV_tables.>", b""),
        ("$JS.API.DIRECT.GET.KV_presence.$KV.presence.pi-1", b""),
        ("$JS.API.DIRECT.GET.KV_presence", json.dumps({"last_by_subj": "$KV.presence.pi-1"})),
        ("$JS.API.INFO", b""),
    ]

    async def work():
        async with guarded.running() as hub, guarded.raw("pi-2") as (client, denied), guarded.linked("pi-1") as link:
            await harness.stored(link, "pi-1.boot.0", 0, b"secret")
            await link.put_presence(b'{"secret": 1}')
            await (await hub.stream.key_value(subjects.TABLES)).put("pi-1.rpi4", b"pi-1's table")
            await (await hub.stream.object_store(subjects.BUNDLES)).put("assets/a", b"bundle")
            await hub.stream.add_consumer(subjects.STREAM, ConsumerConfig(durable_name="server-0"))
            before = await _world(hub)
            answers = await asyncio.gather(
                *(client.request(subject, _bytes(body), timeout=1.0) for subject, body in requests),
                return_exceptions=True,
            )
            return denied, answers, before, await _world(hub)

    denied, answers, before, after = asyncio.run(work())
    assert before == after
    assert {type(answer) for answer in answers} == {nats.errors.TimeoutError}
    text = "\n".join(denied).lower()
    for subject, _ in requests:
        assert f'permissions violation for publish to "{subject.lower()}"' in text


def _bytes(body):
    return body if isinstance(body, bytes) else body.encode()


async def _world(hub):
    """What there is in JetStream."""
    found = {}
    for info in await hub.stream.streams_info():
        consumers = [consumer.name for consumer in await hub.stream.consumers_info(info.config.name)]
        found[info.config.name] = (info.state.messages, info.state.first_seq, info.config.subjects, consumers)
    return found


def test_a_device_cannot_remove_what_others_have_said_of_themselves(guarded):
    async def work():
        async with guarded.running() as hub, guarded.linked("pi-1") as link, guarded.raw("pi-2") as (client, _):
            await link.put_presence(b'{"here": 1}')
            for kind in ("all", "sub"):
                with pytest.raises(nats.js.errors.APIError):
                    await client.jetstream().publish("$KV.presence.pi-2", b"{}", headers={"Nats-Rollup": kind})
            return await hub.presence()

    assert asyncio.run(work()) == {"pi-1": {"here": 1}}


def test_anothers_credentials_under_ones_own_name_are_refused_and_tried_again_slowly(guarded, caplog):
    async def work():
        async with guarded.running():
            link = Link(guarded.broker.url, "pi-1", "boot", print, guarded.credentials("pi-2"))
            with pytest.raises(AccessError, match=r"the credentials .*pi-2.creds are not pi-1's"):
                await link.connect()
            trying = asyncio.create_task(link.connect_at_last())
            await asyncio.sleep(2.0)
            trying.cancel()
            assert not link.connected
            await link.close()
        return (guarded.directory / "broker" / "broker.log").read_text()

    log = asyncio.run(work())
    assert log.count("Subscription Violation") == 2, "one attempt and one more: not a tight loop"


def test_a_revoked_device_is_out_at_once_says_so_and_comes_back_with_new_credentials(guarded, monkeypatch):
    monkeypatch.setattr("runtime_edge.transport.connection._REFUSED_PAUSE_S", 1.0)

    async def work():
        async with guarded.running() as hub, guarded.linked("pi-1") as link, guarded.linked("pi-2") as other:
            await harness.stored(link, "pi-1.boot.0", 0, b"frame")
            neighbour = other._client
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
            assert other._client is neighbour, "others were disconnected"
            assert neighbour.is_connected
            assert hub.client.is_connected
            return (await hub.stream.stream_info(subjects.STREAM)).state.messages

    assert asyncio.run(work()) == 2


def test_anyone_is_let_in_until_the_first_device_is_added_and_not_again_after_the_last_is_revoked(tmp_path):
    access = Access(tmp_path)
    broker = Broker(tmp_path / "broker", port=harness.free_port(), access=access)
    log = tmp_path / "broker" / "broker.log"

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
            access.reload()
            await harness.eventually(lambda: log.read_text().count("Reloaded server configuration") == 2)
            with pytest.raises(nats.errors.Error, match="Authorization Violation"):
                await anonymous()
            assert hub.client.is_connected
        finally:
            await hub.close()
            await broker.stop()

    asyncio.run(work())


async def _quiet(exc):
    pass


def _openssl(directory, *arguments):
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    subprocess.run([*command, *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture
def certificates(tmp_path):
    """ca, other (another authority), and gateway, elsewhere and device signed by ca; each NAME.pem and NAME.key."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl program is not installed")
    for name in ("ca", "other"):
        _openssl(tmp_path, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem",
                 "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    for name, alternative in (("gateway", "IP:127.0.0.1"), ("elsewhere", "DNS:elsewhere"), ("device", "DNS:pi-1")):
        _openssl(tmp_path, "-CA", "ca.pem", "-CAkey", "ca.key", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                 "-out", f"{name}.pem", "-addext", f"subjectAltName={alternative}",
                 "-addext", "basicConstraints=critical,CA:FALSE")  # fmt: skip
    return tmp_path


def _attempt(guarded, url, **tls):
    """Connect as pi-1 with these files; a frame is delivered then."""

    async def work():
        link = Link(url, "pi-1", "boot", print, guarded.credentials("pi-1", **tls))
        try:
            await link.connect()
            await harness.stored(link, "pi-1.boot.0", 0, b"frame")
        finally:
            await link.close()

    return work()


def test_over_tls_a_device_trusts_the_right_broker_only(certificates, tmp_path):
    tls = BrokerTls(certificates / "gateway.pem", certificates / "gateway.key")
    guarded = Guarded(tmp_path, tls)

    async def work():
        async with guarded.running():
            url = guarded.broker.url
            assert url.startswith("tls://")
            await _attempt(guarded, url, tls_ca=certificates / "ca.pem")
            await _attempt(guarded, url, tls_ca=certificates / "gateway.pem")
            for files in ({"tls_ca": certificates / "other.pem"}, {}):
                with pytest.raises(AccessError, match=r"tls://.*: its certificate is refused: .*see --tls-ca$"):
                    await _attempt(guarded, url, **files)
            with pytest.raises(AccessError, match=r"certificate is refused: .*localhost"):
                await _attempt(guarded, url.replace("127.0.0.1", "localhost"), tls_ca=certificates / "ca.pem")
            with pytest.raises(UsageError, match="only tls:// addresses are encrypted"):
                await _attempt(guarded, url.replace("tls://", "nats://"), tls_ca=certificates / "ca.pem")
            with pytest.raises(LinkError):
                await _attempt(guarded, url.replace("tls://", "nats://"))

    asyncio.run(work())


def test_a_broker_that_claims_to_know_no_tls_is_not_believed(guarded, certificates):
    async def work():
        async with guarded.running():
            with pytest.raises(AccessError, match="no TLS with it"):
                await _attempt(guarded, guarded.broker.url.replace("nats://", "tls://"), tls_ca=certificates / "ca.pem")

    asyncio.run(work())
    assert "nkey" not in (guarded.directory / "broker" / "broker.log").read_text().lower(), "it introduced itself"


def test_a_broker_with_an_authority_asks_for_certificates_and_the_server_itself_has_one(certificates, tmp_path):
    tls = BrokerTls(*(certificates / f"gateway.{end}" for end in ("pem", "key")), ca=certificates / "ca.pem")
    guarded = Guarded(tmp_path, tls)

    def files(name):
        return {"tls_cert": certificates / f"{name}.pem", "tls_key": certificates / f"{name}.key"}

    async def work():
        async with guarded.running() as hub:
            authority = {"tls_ca": certificates / "ca.pem"}
            await _attempt(guarded, guarded.broker.url, **authority, **files("device"))
            for wrong in ({}, files("other")):
                with pytest.raises(LinkError):
                    await _attempt(guarded, guarded.broker.url, **authority, **wrong)
            return (await hub.stream.stream_info(subjects.STREAM)).state.messages

    assert asyncio.run(work()) == 1


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
