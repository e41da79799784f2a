"""One device's credentials against the rest of a fleet, three devices and a server: what it may try, and no effect."""

import asyncio
import contextlib
import itertools

import numpy as np
import pytest
from attacker import Attacker
from attempts import attempts
from fleet import ATTACKER, OTHER, READER, VICTIM, Fleet
from idle_stream import settled
from waiting import PATIENCE_S, eventually

from runtime_edge.errors import LinkError
from runtime_edge.formats import subjects
from runtime_edge.formats.codec import CutCodec
from runtime_edge.formats.credentials import Address, Credentials
from runtime_edge.formats.wire import encode_frame
from runtime_edge.transport.connection import Connection
from runtime_server.broker.access import SecurityConfig
from runtime_server.broker.hub import Hub
from runtime_server.harness.ports import free_ports
from runtime_server.server import Server
from runtime_server.serving.server_config import ServerConfig

pytestmark = pytest.mark.timeout(600)
SECRET = "none-of-your-business"
"""Stands in whatever is another device's."""
OWN = {
    subjects.events(ATTACKER),
    *(f"{start}{ATTACKER}" for start in ("$KV.presence.", "$KV.learnt.", "news.presence.", "news.learnt.")),
}
WATCHED = [
    "evt.*", f"_INBOX.{VICTIM}.>", f"_INBOX.{OTHER}.>", "$KV.>", "$O.>", "news.>", "srv.>", "forged.>",
    *(f"$JS.API.STREAM.{what}.>" for what in ("PURGE", "DELETE", "UPDATE", "CREATE", "RESTORE", "SNAPSHOT")),
    *(f"$JS.API.CONSUMER.{what}.>" for what in ("CREATE", "DURABLE", "DELETE", "PAUSE", "UNPIN")), "$JS.API.META.>",
]  # fmt: skip
"""Where nothing happens while only the attacker does anything."""


class Peaceful:
    """Another device: sends a window when it is asked to, and expects its answer."""

    def __init__(self, url, directory, name, frame):
        self.name, self.boot, self.frame, self.windows = name, f"{SECRET}-{name}", frame, 0
        self.link = Connection(url, name, Credentials(nkey=directory / f"{name}.creds"))

    async def is_served(self):
        loop = asyncio.get_running_loop()
        answer, stored, window = loop.create_future(), loop.create_future(), self.windows
        self.windows += 1
        self.link.expect(window, PATIENCE_S, answer.set_result)
        self.link.send(subjects.message_id(self.name, self.boot, window), window, self.frame(window), stored.set_result)
        assert not isinstance(await stored, LinkError)
        await self.link.put(subjects.PRESENCE, b'{"boot": "%s", "windows_captured": %d}' % (self.boot.encode(), window))
        return (await answer).status == "ok" and self.link.bad_replies == 0


class ServedFleet(Fleet):
    """The fleet's broker is a server's, and the server completes what devices send."""

    def __init__(self, directory, encoder, bundle):
        super().__init__(directory, 1)
        port, self.mqtt_port = free_ports(2)
        config = ServerConfig(
            bundle=bundle.path, state=directory, port=port, mqtt_port=self.mqtt_port, training=False,
            security=SecurityConfig(auth=True),
        )  # fmt: skip
        self.server, self.port, self.urls = Server(encoder, config), port, [f"nats://127.0.0.1:{port}"]
        self.hub = Hub(Address(self.urls[0], Credentials(nkey=directory / "server.nkey")), "operator")
        codec = CutCodec(bundle.manifest.info.cuts[1], "float32")
        payload, compressed = codec.encode(np.zeros(bundle.manifest.info.cuts[1].shape, np.float32))
        payload = bytes(payload)
        self.frame = lambda window: encode_frame(window, 0, 1, 1, "float32", compressed, 0.5, payload)
        self.peaceful = [Peaceful(self.urls[0], directory, name, self.frame) for name in (VICTIM, OTHER)]

    @contextlib.asynccontextmanager
    async def running(self):
        started = asyncio.get_running_loop().create_future()
        running = asyncio.create_task(self.server.run(started.set_result))
        try:
            await asyncio.wait({running, started}, return_when=asyncio.FIRST_COMPLETED)
            assert started.done(), running.result()
            await self.hub.connect()
            buckets = (subjects.TABLES, subjects.HEADS, subjects.ADAPTATIONS, subjects.LEARNT)
            for bucket, name in itertools.product(buckets, (VICTIM, OTHER)):
                key = name if bucket == subjects.LEARNT else f"{name}.rpi4"
                await (await self.hub.stream.key_value(bucket)).put(key, SECRET.encode())
            for device in self.peaceful:
                await device.link.connect()
            yield
        finally:
            await self.close()
            for device in self.peaceful:
                await device.link.close()
            await self.hub.close()
            self.server.stop()
            await running

    async def watch(self):
        victim, other, reader = [await self.client(name) for name in (VICTIM, OTHER, READER)]

        async def seen(message):
            if message.subject not in OWN:
                self.seen.append((message.subject, len(message.data)))

        for client, topics in (
            (self.hub.client, WATCHED),
            (victim, [f"_INBOX.{VICTIM}.>", f"news.tables.{VICTIM}.>", "news.releases.>"]),
            (other, [f"_INBOX.{OTHER}.>", f"news.tables.{OTHER}.>"]),
            (reader, [subjects.events(">"), "$MQTT.sub.>"]),
        ):
            for topic in topics:
                await client.subscribe(topic, cb=seen)
        await self.settle()
        for topic in ("srv.forged", f"_INBOX.{OTHER}.forged", subjects.events(VICTIM)):
            await self.hub.client.publish(topic)
        await self.settle()
        assert len(self.seen) >= 5, "what reaches others is not seen"


async def _tried(fleet, attacker, attempt):
    """What an attempt had an effect on."""
    fleet.seen.clear()
    attacker.heard.clear()
    await attacker.connect()
    await attempt.act(attacker)
    await fleet.settle()
    found = {f"reached {subject}" for subject, _ in fleet.seen}
    return sorted(found | {f"read {where}" for where, data in attacker.heard if SECRET.encode() in data})


async def _tried_all(fleet, attacker):
    """Each attempt's kind, name and effects; after each kind, everything is as it was, and all others are served."""
    found = []
    for kind, group in itertools.groupby(attempts(fleet.frame), lambda attempt: attempt.kind):
        await _all_served(fleet)
        before = await fleet.world()
        for attempt in group:
            found.append((kind, attempt.name, await _tried(fleet, attacker, attempt)))
        await settled(fleet.hub)
        after = await fleet.world()
        changed = {name: (before.get(name), after.get(name)) for name in before | after}
        changed = {name: values for name, values in changed.items() if values[0] != values[1]}
        assert changed == {}, f"{kind} changed {changed}"
        attacker.heard.clear()
        await _all_served(fleet)
        await fleet.settle()
        assert not [where for where, data in attacker.heard if SECRET.encode() in data], f"{kind}: it listens to others"
    return found


async def _all_served(fleet):
    for device in fleet.peaceful:
        assert await device.is_served()
    await settled(fleet.hub)


def test_hundreds_of_attempts_of_one_device_have_no_effect_on_the_others(
    tmp_path, tiny_encoder, small_bundle, record_property
):
    fleet = ServedFleet(tmp_path, tiny_encoder, small_bundle)

    async def work():
        async with fleet.running():
            await fleet.watch()
            attacker = Attacker(tmp_path, fleet.port, fleet.mqtt_port)
            try:
                tried = await _tried_all(fleet, attacker)
            finally:
                await attacker.client.close()
            sent = {device.name: device.windows for device in fleet.peaceful}

            async def counted():
                windows = (await fleet.hub.server_status())["windows"]
                return {name: windows.get(name) for name in sent} == sent

            await eventually(counted, f"windows counted: {sent}")
            assert (await fleet.hub.server_status())["counters"]["garbage"] > 0, "nothing that was tried has arrived"
            return tried

    tried = asyncio.run(work())
    record_property("attempts", [[kind, name, *effects] for kind, name, effects in tried])
    assert len({(kind, name) for kind, name, _ in tried}) == len(tried) >= 200
    assert [(kind, name, effects) for kind, name, effects in tried if effects] == []
