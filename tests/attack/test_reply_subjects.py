"""One device's credentials, a real broker, and every reply subject that is not the device's: none may be reached.

Whatever a device publishes the broker may answer, and it answers on the subject that the device names. Each attempt is
printed with what it had an effect on; there must be nothing.
"""

import asyncio
import contextlib
import json

import nats
import nats.errors
import pytest
from nats.js.api import AckPolicy, ConsumerConfig
from paho.mqtt import client as mqtt

from runtime_edge.formats import subjects
from runtime_edge.formats.credentials import Credentials
from runtime_server.broker.access import Access
from runtime_server.broker.broker_process import Broker, ClusterConfig
from runtime_server.broker.hub import DEAD, Hub
from runtime_server.harness.ports import free_ports

pytestmark = pytest.mark.timeout(180)
VICTIM, ATTACKER, READER = "pi-1", "pi-2", "phone"
SETTLE_S = 0.01
GET = "$JS.API.DIRECT.GET"
BATCH = json.dumps({"seq": 1, "next_by_subj": "$O.bundles.C.>", "batch": 16}).encode()

PUBLISHABLE = [
    (subjects.frames(ATTACKER), b"frame"),
    (subjects.events(ATTACKER), b"{}"),
    (subjects.filler(ATTACKER), b""),
    (f"$KV.presence.{ATTACKER}", b"{}"),
    (f"$KV.learnt.{ATTACKER}", b"{}"),
    (f"{GET}.KV_releases.$KV.releases.rpi4", b""),
    (f"{GET}.KV_releases.$KV.releases.none", b""),
    (f"{GET}.KV_tables.$KV.tables._all.rpi4", b""),
    (f"{GET}.KV_tables.$KV.tables.{ATTACKER}.rpi4", b""),
    (f"{GET}.KV_heads.$KV.heads._all.rpi4", b""),
    (f"{GET}.OBJ_bundles", BATCH),
    (f"{GET}.OBJ_bundles.$O.bundles.M.YXNzZXRz", b""),
]
"""Everything that a device may publish, and with what."""

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


class Fleet:
    """Brokers that let in two devices, a reader and the server; what reaches others is seen."""

    def __init__(self, directory, brokers):
        self.directory, self.access = directory, Access(directory)
        for name in (VICTIM, ATTACKER):
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
            for client in self._clients:
                await client.close()
            await self.hub.close()
            await asyncio.gather(*(broker.stop() for broker in self.brokers))

    async def client(self, name):
        """A client of the library alone, which stops at nothing; connected to another broker than the server."""
        url = self.brokers[[ATTACKER, VICTIM, READER].index(name) % len(self.brokers)].url
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
        """All that is not the attacker's."""
        stream, found = self.hub.stream, {}
        for info in await stream.streams_info():
            name, own = info.config.name, {ATTACKER: 0}
            if info.config.name in (subjects.STREAM, "KV_presence", "KV_learnt"):
                own = (await _subjects(self.hub, name)) or {}
            others = {subject: count for subject, count in own.items() if not subject.endswith(ATTACKER)}
            consumers = sorted((one.name, one.num_ack_pending) for one in await stream.consumers_info(name))
            state = (info.state.messages, info.state.last_seq) if ATTACKER in own else others
            found[name] = (state, info.config.subjects, consumers)
        return found


async def _subjects(hub, name):
    answer = await hub.client.request(f"$JS.API.STREAM.INFO.{name}", b'{"subjects_filter": ">"}', timeout=5)
    return json.loads(answer.data)["state"].get("subjects")


async def _quiet(exc):
    pass


def _is_own(subject):
    """Whether this is what the attacker may say and what comes of that: an event, a request, its answer."""
    own = {subject for subject, _ in PUBLISHABLE} | {f"news.{name}.{ATTACKER}" for name in ("presence", "learnt")}
    return subject in own or (subject.startswith("_R_.") and subject != "_R_.forged.reply")


async def _attempts(fleet):
    """Name, and what was seen of it where it must not be, of every attempt."""
    attacker, reader = await fleet.client(ATTACKER), await fleet.client(READER)
    foreign = [f"{fleet.unacknowledged}", *FOREIGN]

    async def effects(name, attempt):
        fleet.seen.clear()
        with contextlib.suppress(nats.errors.Error):
            await attempt
        await fleet.settle()
        return name, sorted({subject for subject, _ in fleet.seen if not _is_own(subject)})

    found = []
    for reply in foreign:
        for subject, payload in PUBLISHABLE:
            found.append(await effects(f"{subject}, reply {reply}", attacker.publish(subject, payload, reply)))
    for reply in foreign:
        for name, client in ((ATTACKER, attacker), (READER, reader)):
            found.append(await effects(f"{name} publishes {reply}", client.publish(reply, b"", "_INBOX.forged")))
        tracing = {"Nats-Trace-Dest": reply}
        subject = subjects.frames(ATTACKER)
        found.append(
            await effects(f"{subject}, trace to {reply}", attacker.publish(subject, b"frame", headers=tracing))
        )
    for topic in [reply.replace(".", "/") for reply in foreign if "$" not in reply]:
        found.append(await effects(f"MQTT {topic}", asyncio.to_thread(_mqtt, fleet, topic)))
    return found


def _mqtt(fleet, topic):
    """A reader publishes by MQTT, now and as a will."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.username_pw_set(READER, fleet.password)
    client.will_set(topic, b"forged")
    client.connect("127.0.0.1", fleet.mqtt_port)
    client.publish(topic, b"forged")
    for _ in range(20):
        client.loop(0.005)
    client.socket().close()


@pytest.mark.parametrize("brokers", [1, 3])
def test_no_reply_subject_of_a_device_reaches_the_server_or_another_device(tmp_path, brokers):
    fleet = Fleet(tmp_path, brokers)

    async def work():
        async with fleet.running():
            before = await fleet.world()
            await fleet.watch()
            attempts = await _attempts(fleet)
            return attempts, before, await fleet.world()

    attempts, before, after = asyncio.run(work())
    for name, effects in attempts:
        print(f"{name}: {', '.join(effects) or 'nothing'}")
    harmful = [name for name, effects in attempts if effects]
    print(f"{len(attempts)} attempts, {len(harmful)} with an effect")
    assert harmful == []
    assert after == before


def test_no_batch_of_objects_is_poured_into_another_devices_inbox(tmp_path):
    fleet = Fleet(tmp_path, 1)

    async def work():
        async with fleet.running():
            await fleet.watch()
            attacker = await fleet.client(ATTACKER)
            fleet.seen.clear()
            for number in range(20):
                await attacker.publish(f"{GET}.OBJ_bundles", BATCH, f"_INBOX.{VICTIM}.connection.{number}")
            await fleet.settle()
            await asyncio.sleep(20 * SETTLE_S)
            return sum(size for subject, size in fleet.seen if subject.startswith(f"_INBOX.{VICTIM}."))

    assert asyncio.run(work()) == 0
