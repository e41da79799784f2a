"""One device's credentials make 1500 connections as fast as they can; it holds no more than are its due."""

import asyncio
import contextlib
import json
import subprocess
import sys

import pytest
from fleet import ATTACKER, OTHER, VICTIM, Fleet

from runtime_edge.errors import LinkError
from runtime_edge.formats import subjects
from runtime_edge.formats.credentials import Credentials
from runtime_edge.transport.connection import Connection

pytestmark = pytest.mark.timeout(300)
CONNECTIONS, BOUND = 1500, 32

FLOOD = """
import asyncio, json, sys, time
from attacker import introduction

port, seed, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
held = []

async def attempt(number, at_once):
    async with at_once:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            info = json.loads((await reader.readline()).split(b" ", 1)[1])
            writer.write(introduction(seed, info["nonce"]) + b"PING\\r\\n")
            said = await reader.readline()
        except (OSError, IndexError, ValueError):
            return
        (held.append if said == b"PONG\\r\\n" else asyncio.StreamWriter.close)(writer)

async def flood():
    at_once, began = asyncio.Semaphore(100), time.monotonic()
    await asyncio.gather(*(attempt(number, at_once) for number in range(count)))
    print(json.dumps({"held": len(held), "seconds": time.monotonic() - began}), flush=True)
    sys.stdin.read()

asyncio.run(flood())
"""
"""Holds what it was given until its input ends. A process of its own, so that it slows nobody in this one."""


async def _served(link, name, window):
    """One frame from a device to the broker and a report of its."""
    said = asyncio.get_running_loop().create_future()
    link.send(subjects.message_id(name, "boot", window), window, b"frame", said.set_result, 120.0)
    assert not isinstance(await said, LinkError)
    assert await link.value(subjects.RELEASES, "rpi4") == b"the server's"


def test_a_device_that_connects_1500_times_holds_its_share_and_the_others_are_served(tmp_path):
    fleet = Fleet(tmp_path, 1)
    seed = (tmp_path / f"{ATTACKER}.creds").read_text().strip()

    async def work():
        async with fleet.running(), contextlib.AsyncExitStack() as closing:
            port = fleet.brokers[0].port
            links = {
                name: Connection(fleet.urls[0], name, Credentials(nkey=tmp_path / f"{name}.creds"))
                for name in (VICTIM, OTHER)
            }
            for link in links.values():
                await link.connect()
                closing.push_async_callback(link.close)
            flood = await asyncio.create_subprocess_exec(
                sys.executable, "-c", FLOOD, str(port), seed, str(CONNECTIONS),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path)},
            )  # fmt: skip
            try:
                outcome, window = asyncio.create_task(flood.stdout.readline()), 0
                while not outcome.done() or not window:
                    for name, link in links.items():
                        await _served(link, name, window)
                    window += 1
                late = Connection(fleet.urls[0], VICTIM, Credentials(nkey=tmp_path / f"{VICTIM}.creds"))
                closing.push_async_callback(late.close)
                await late.connect(60.0)  # with all of the attacker's connections held
                await _served(late, VICTIM, window)
                return json.loads(await outcome), window, [link.connected for link in links.values()]
            finally:
                flood.stdin.close()
                await flood.wait()

    outcome, windows, connected = asyncio.run(work())
    print(f"{CONNECTIONS} connections in {outcome['seconds']:.2f} s; {windows} windows of each neighbour stored")
    assert 0 < outcome["held"] <= BOUND
    assert windows > 0
    assert connected == [True, True], "a neighbour was disconnected"
