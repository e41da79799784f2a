"""A device that stops at nothing: its credentials, several ways to use them, and what it has been told."""

import asyncio
import base64
import contextlib
import json

import nats.errors
import nkeys
from fleet import ATTACKER, VICTIM
from paho.mqtt import client as mqtt

from runtime_edge.formats.credentials import Credentials, read_seed
from runtime_edge.transport.fast_client import DirectClient

INBOX = f"_INBOX.{ATTACKER}.heard"
LISTEN_S = 0.05
"""How long a connection is listened to that says nothing more."""


class Attacker:
    """A device's client that checks nothing of what it sends, and what it has been told."""

    def __init__(self, directory, broker_port, mqtt_port):
        self._credentials = Credentials(nkey=directory / f"{ATTACKER}.creds")
        self.seed = read_seed(self._credentials.nkey)
        self.broker_port, self.mqtt_port, self.heard = broker_port, mqtt_port, []
        self.client = None

    async def connect(self):
        """Unless it is connected: the broker ends connections that go too far."""
        if self.client is not None:
            if self.client.is_connected:
                return
            await self.client.close()
        url = f"nats://127.0.0.1:{self.broker_port}"
        self.client = DirectClient(lambda *told: None)
        await self.client.connect(url, error_cb=_quiet, allow_reconnect=False, **self._credentials.options(url))
        await self.client.subscribe(f"_INBOX.{ATTACKER}.>", cb=self._hear)
        await self.client.flush()

    async def _hear(self, message):
        self.heard.append((message.subject, bytes(message.data) + repr(message.headers).encode()))

    async def publish(self, subject, data=b"forged", reply=INBOX, headers=None):
        self.client.write_message(subject, data, reply, headers)
        with contextlib.suppress(nats.errors.Error):
            await self.client.flush()

    async def subscribe(self, subject, queue=""):
        await self.client.subscribe(subject, queue, cb=self._hear)

    async def say(self, data, own=True, **claims):
        """Connect with the device's own key, and claims beyond it, or as the bytes say; keep what comes back."""
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.broker_port)
            try:
                info = json.loads((await asyncio.wait_for(reader.readline(), 1.0)).split(b" ", 1)[1])
                writer.write((introduction(self.seed, info["nonce"], **claims) if own else b"") + data)
                while found := await asyncio.wait_for(reader.read(1 << 16), LISTEN_S):
                    self.heard.append(("socket", found))
            finally:
                writer.close()

    def mqtt(self, user, password):
        """Connect to the MQTT listener, listen to everything, and publish, now and as a will."""
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        client.username_pw_set(user, password)
        client.on_message = lambda *told: self.heard.append((told[-1].topic, told[-1].payload))
        client.will_set(f"evt/{VICTIM}", b"forged")
        with contextlib.suppress(OSError):
            client.connect("127.0.0.1", self.mqtt_port)
            client.subscribe("#")
            client.publish(f"evt/{VICTIM}", b"forged")
            for _ in range(10):
                client.loop(0.005)
        if (connected := client.socket()) is not None:
            connected.close()


async def _quiet(exc):
    pass


def introduction(seed, nonce, **claims):
    """What a client says first: its key, and that it has the seed of it."""
    pair = nkeys.from_seed(bytearray(seed.encode()))
    signature = base64.urlsafe_b64encode(pair.sign(nonce.encode())).decode().rstrip("=")
    said = {"nkey": pair.public_key.decode(), "sig": signature, "verbose": False, "pedantic": False, "headers": True}
    return b"CONNECT " + json.dumps(said | {"protocol": 1, "no_responders": True} | claims).encode() + b"\r\n"
