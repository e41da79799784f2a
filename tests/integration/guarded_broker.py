"""A real broker that asks for credentials."""

import contextlib

import harness
import nats

from runtime_edge.formats import subjects
from runtime_edge.formats.credentials import Credentials
from runtime_edge.transport.connection import Connection
from runtime_server.broker.access import Access
from runtime_server.broker.broker_process import Broker
from runtime_server.broker.hub import Hub


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
    async def linked(self, name="pi-1", late=lambda reply: None, **options):
        link = Connection(self.broker.url, name, self.credentials(name), **options)
        link.on_late_reply(late)
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
