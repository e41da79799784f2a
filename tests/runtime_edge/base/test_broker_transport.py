"""All addresses of a broker's name are tried."""

import asyncio
import socket

from runtime_edge.base.broker_transport import AnyAddressClient

INFO = b'INFO {"server_id":"x","version":"2.10.0","max_payload":1048576}\r\n'


async def _broker(reader, writer):
    writer.write(INFO)
    while line := await reader.readline():
        if line.startswith(b"PING"):
            writer.write(b"PONG\r\n")
    writer.close()


def test_an_address_that_swallows_packets_does_not_hide_the_next_one(monkeypatch):
    async def connect():
        serving = await asyncio.start_server(_broker, "127.0.0.2", 0)
        port = serving.sockets[0].getsockname()[1]
        with socket.socket() as hole:
            hole.bind(("127.0.0.1", port))
            hole.listen(0)  # its queue is filled: further packets are dropped
            waiting = [socket.socket() for _ in range(4)]
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))

            def addresses(*_, **__):
                return [
                    (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.1", "127.0.0.2")
                ]

            monkeypatch.setattr(socket, "getaddrinfo", addresses)
            client = AnyAddressClient()
            await client.connect(f"nats://gateway:{port}", connect_timeout=10, allow_reconnect=False)
            assert client.is_connected
            await client.close()
            for one in waiting:
                one.close()
        serving.close()

    asyncio.run(connect())
