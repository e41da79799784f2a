"""What a device says of a broker that it cannot reach."""

import asyncio
import contextlib
import logging
import socket

from waiting import eventually

from runtime_edge.transport.connection import Connection


def test_a_broker_that_cannot_be_reached_is_a_warning_once_with_its_address_and_the_reason(caplog):
    caplog.set_level(logging.WARNING)
    attempts = asyncio.Queue()

    async def refuse(_, writer):
        attempts.put_nowait(None)
        writer.close()

    async def try_three_times():
        serving = await asyncio.start_server(refuse, "127.0.0.1", 0)
        port = serving.sockets[0].getsockname()[1]
        connection = Connection(f"nats://pi:TopSecret@127.0.0.1:{port}", "pi-1")
        connecting = asyncio.create_task(connection.connect_with_retries())
        for _ in range(3):
            await asyncio.wait_for(attempts.get(), 60)
        connecting.cancel()
        await asyncio.wait({connecting})
        await connection.close()
        serving.close()
        return port

    port = asyncio.run(try_three_times())
    (record,) = [each for each in caplog.records if each.name == "runtime_edge.transport.connection"]
    assert record.levelno == logging.WARNING
    said = record.getMessage()
    assert said.startswith(f"broker nats://***@127.0.0.1:{port}: cannot connect (")
    assert said.endswith("; frames wait in the spool")


def test_keys_that_are_watched_before_there_is_a_broker_leave_no_task_behind(caplog):
    """The library begins a subscription on a connection that does not exist yet, and nothing ends it."""

    async def told():
        return "cannot connect" in caplog.text

    async def watch_and_close():
        with contextlib.closing(socket.socket()) as taken:  # nobody listens there
            taken.bind(("127.0.0.1", 0))
            connection = Connection(f"nats://127.0.0.1:{taken.getsockname()[1]}", "pi-1")

            async def ignore(key, value):
                pass

            await connection.watch("tables", ["rpi4", "pi-1.rpi4"], ignore)
            connecting = asyncio.create_task(connection.connect_with_retries())
            await eventually(told, "it has tried")
            connecting.cancel()
            await asyncio.wait({connecting})
            await connection.close()
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(watch_and_close()) == set()
