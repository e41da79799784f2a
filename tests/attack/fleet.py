"""A fleet whose broker asks for credentials, one device that attacks, and all that is not that device's."""

import asyncio
import contextlib
import json

import nats
import nats.js.errors
from nats.js.api import AckPolicy, ConsumerConfig

from runtime_edge.formats import subjects
from runtime_edge.formats.credentials import Credentials
from runtime_server.broker.access import Access
from runtime_server.broker.broker_process import Broker, ClusterConfig
from runtime_server.broker.hub import Hub
from runtime_server.broker.streams import DEAD
from runtime_server.harness.ports import free_ports

VICTIM, ATTACKER, OTHER, READER = "pi-1", "pi-2", "pi-3", "phone"
SETTLE_S = 0.01

FOREIGN = [
    subjects.frames(VICTIM),
    subjects.events(VICTIM),
    f"$KV.presence.{VICTIM}",
    f"$KV.learnt.{VICTIM}",
    "$KV.tables._all.rpi4",
    f"$KV.tables.{VICTIM}.rpi4",
    "$KV.heads._all.rpi4",
    "$KV.releases.rpi4",
    "$KV.releases._key",
    "$O.bundles.M.YXNzZXRz",
    "$O.bundles.C.forged",
    "news.releases.rpi4",
    f"news.tables.{VICTIM}.rpi4",
    f"_INBOX.{VICTIM}.connection.0",
    f"_INBOX.{VICTIM}.connection.a1.1.fail.1.0.$FI",
    "_INBOX.server",
    "_R_.forged.reply",
    "srv.status",
    "dead.forged",
    "$MQTT.sub.forged",
    "$SYS.REQ.SERVER.PING",
    "$JS.API.INFO",
    "$JS.API.STREAM.CREATE.FORGED",
    f"$JS.API.STREAM.MSG.DELETE.{subjects.STREAM}",
    f"$JS.API.STREAM.UPDATE.{subjects.STREAM}",
    f"$JS.API.CONSUMER.CREATE.{subjects.STREAM}",
    f"$JS.API.CONSUMER.MSG.NEXT.{subjects.STREAM}.server-0",
    f"$JS.API.CONSUMER.PAUSE.{subjects.STREAM}.server-0",
    f"$JS.API.CONSUMER.DELETE.{subjects.STREAM}.server-1",
    f"$JS.API.STREAM.PURGE.{DEAD}",
    "$JS.API.STREAM.PURGE.KV_tables",
    f"$JS.API.STREAM.DELETE.{DEAD}",
    f"$JS.API.STREAM.PURGE.{subjects.STREAM}",
    f"$JS.API.STREAM.DELETE.{subjects.STREAM}",
]
"""What a device must not reach, whichever way; what does most damage comes last."""

SERVERS = [
    ("tables", "_all.rpi4"), ("tables", f"{VICTIM}.rpi4"), ("heads", "_all.rpi4"),
    ("releases", "rpi4"), ("releases", "_key"), ("presence", VICTIM), ("learnt", VICTIM),
]  # fmt: skip
"""Keys that are not the attacker's."""


SHARED = (subjects.STREAM, DEAD, "KV_presence", "KV_learnt")
"""Streams in which the attacker has a place of its own."""


class Fleet:
    """Brokers that let in three devices, a reader and the server; what reaches others is seen."""

    def __init__(self, directory, brokers):
        self.directory, self.access = directory, Access(directory)
        for name in (VICTIM, ATTACKER, OTHER):
            (directory / f"{name}.creds").write_text(self.access.add(name))
        self.password = self.access.add_reader(READER)
        ports = free_ports(2 * brokers + 1)
        self.mqtt_port, routes = ports.pop(), [f"127.0.0.1:{port}" for port in ports[brokers:]]
        self.brokers = []
        for place in range(brokers):
            others = tuple(route for route in routes if route != routes[place])
            cluster = ClusterConfig(f"b{place}", ports[brokers + place], others) if brokers > 1 else None
            self.brokers.append(
                Broker(
                    directory / (f"broker-b{place}" if cluster else "broker"),
                    port=ports[place],
                    mqtt_port=None if place else self.mqtt_port,
                    access=self.access,
                    cluster=cluster,
                )
            )
        self.urls = [broker.url for broker in self.brokers]
        self.hub = Hub(self.brokers[0].address, "server")
        self.seen, self._clients = [], []

    @contextlib.asynccontextmanager
    async def running(self):
        try:
            await asyncio.gather(*(broker.start() for broker in self.brokers))
            await self.hub.connect(create=True, replicas=len(self.brokers))
            await self._fill()
            yield
        finally:
            await self.close()
            await self.hub.close()
            await asyncio.gather(*(broker.stop() for broker in self.brokers))

    async def close(self):
        """Disconnect the clients."""
        for client in self._clients:
            await client.close()

    async def client(self, name):
        """A client of the library alone, which stops at nothing; connected to another broker than the server."""
        url = self.urls[[ATTACKER, VICTIM, READER, OTHER].index(name) % len(self.urls)]
        options = {"user": READER, "password": self.password}
        if name != READER:
            options = Credentials(nkey=self.directory / f"{name}.creds").options(url)
        client = await nats.connect(
            url,
            error_cb=_quiet,
            inbox_prefix=subjects.inbox(name),
            allow_reconnect=False,
            **{**options, "skip_subject_validation": True},
        )
        self._clients.append(client)
        return client

    async def watch(self):
        """See what is published where the server is, and what reaches the other device and the reader."""

        async def seen(message):
            self.seen.append((message.subject, len(message.data)))

        victim, reader = await self.client(VICTIM), await self.client(READER)
        for client, topics in (
            (self.hub.client, [">"]),
            (victim, [f"_INBOX.{VICTIM}.>", "news.releases.>", f"news.tables.{VICTIM}.>"]),
            (reader, [subjects.events(">"), "$MQTT.sub.>"]),
        ):
            for topic in topics:
                await client.subscribe(topic, cb=seen)
        await self.settle()

    async def settle(self):
        """Until what was published has been answered and was seen."""
        await asyncio.sleep(SETTLE_S)
        for client in (self.hub.client, *self._clients):
            await client.flush()

    async def _fill(self):
        stream = self.hub.stream
        for bucket, key in SERVERS:
            await (await stream.key_value(bucket)).put(key, b"the server's")
        await (await stream.object_store(subjects.BUNDLES)).put("assets/a", bytes(1 << 20))
        for number in range(8):
            await stream.publish(subjects.frames(VICTIM), b"frame %d" % number)
        await stream.publish("dead.letter", b"letter")
        for number in range(2):
            name = f"server-{number}"
            await stream.add_consumer(subjects.STREAM, ConsumerConfig(durable_name=name, ack_policy=AckPolicy.EXPLICIT))
        pulled = await stream.pull_subscribe("", "server-0", stream=subjects.STREAM)
        self.unacknowledged = (await pulled.fetch(1))[0].reply
        await pulled.unsubscribe()

    async def world(self):
        """All that is not the attacker's: what streams hold, how they and consumers are set, and the latest values."""
        stream, found = self.hub.stream, {}
        for info in await stream.streams_info():
            name, own = info.config.name, await _subjects(self.hub, info.config.name)
            others = {subject: count for subject, count in own.items() if not self._is_own(subject)}
            consumers = sorted(
                (one.name, one.num_ack_pending, bool(one.paused)) for one in await stream.consumers_info(name)
            )
            state = others if name in SHARED else (others, info.state.last_seq)
            found[name] = (state, info.config, consumers)
        for bucket, key in SERVERS:
            with contextlib.suppress(nats.js.errors.NotFoundError):
                subject = subjects.bucket_subject(bucket, key)
                latest = await stream.get_last_msg(subjects.bucket_stream(bucket), subject, direct=True)
                found[subject] = (latest.seq, latest.data)
        return found

    @staticmethod
    def _is_own(subject):
        """Whether a device may write this, or the server does of itself."""
        return subject.endswith(f".{ATTACKER}") or subject == "act.canary"


async def _subjects(hub, name):
    answer = await hub.client.request(f"$JS.API.STREAM.INFO.{name}", b'{"subjects_filter": ">"}', timeout=5)
    return json.loads(answer.data)["state"].get("subjects") or {}


async def _quiet(exc):
    pass
