"""The embedded broker: a child that starts, stops, and neither outlives nor outwits its server."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import textwrap

import nats
import psutil
import pytest
from certificate import self_signed
from waiting import eventually

from runtime_edge.errors import LinkError, MissingExtra
from runtime_server.broker.access import Access
from runtime_server.broker.broker_process import Broker, BrokerTls

pytestmark = pytest.mark.integration


def test_it_listens_after_start_and_is_gone_after_stop(tmp_path, free_port):
    broker = Broker(tmp_path / "broker", port=free_port)

    async def life():
        await broker.start()
        client = await nats.connect(broker.url)
        await client.jetstream().account_info()
        await client.close()
        pid = pid_of(broker)
        await broker.stop()
        return pid

    pid = asyncio.run(life())
    assert not psutil.pid_exists(pid)
    assert not (tmp_path / "broker" / "broker.pid").exists()
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", free_port)) != 0
    asyncio.run(broker.stop())  # a second time does nothing


@pytest.mark.parametrize("host", ["::1", "::"])
def test_a_host_of_ipv6_is_listened_on(tmp_path, free_port, host):
    broker = Broker(tmp_path / "broker", host=host, port=free_port)

    async def life():
        await broker.start()
        try:
            client = await nats.connect(f"nats://[::1]:{free_port}")
            await client.close()
        finally:
            await broker.stop()

    assert broker.url == f"nats://[{host}]:{free_port}"
    asyncio.run(life())


@pytest.mark.parametrize(
    "name", ['my "field" server', "a\\b", "Müller's #1", "$HOME {x}", "two\nlines", os.fsdecode(b"caf\xe9")]
)
def test_whatever_is_in_the_name_of_its_folder_and_certificates_the_broker_starts(tmp_path, free_port, name):
    root = tmp_path / name
    root.mkdir()
    cert, key = root / "cert.pem", root / "key.pem"
    self_signed(root, "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem")
    broker = Broker(root / "broker", port=free_port, tls=BrokerTls(cert, key))

    async def life():
        await broker.start()
        await broker.stop()

    asyncio.run(life())
    assert (root / "broker" / "jetstream").is_dir()


def test_a_port_in_use_is_refused_even_when_another_broker_listens_there(broker, tmp_path):
    other = Broker(tmp_path / "other", port=broker.port)
    with pytest.raises(LinkError, match=f"port {broker.port} is taken"):
        asyncio.run(other.start())
    assert psutil.pid_exists(pid_of(broker))


def test_a_broker_that_cannot_start_says_why(tmp_path, free_port):
    broker = Broker(tmp_path / "broker", host="192.0.2.1", port=free_port)  # an address of no interface here
    with pytest.raises(LinkError, match="did not start"):
        asyncio.run(broker.start())


def test_what_a_killed_server_left_on_the_same_store_is_stopped_first(tmp_path, free_port):
    left = Broker(tmp_path / "broker", port=free_port)
    again = Broker(tmp_path / "broker", port=free_port)
    asyncio.run(left.start())
    old = psutil.Process(pid_of(left))
    asyncio.run(again.start())
    try:
        assert pid_of(again) != old.pid
        assert not old.is_running() or old.status() == psutil.STATUS_ZOMBIE
    finally:
        for broker in (again, left):
            asyncio.run(broker.stop())


def test_a_dead_broker_is_started_again(tmp_path, free_port):
    broker = Broker(tmp_path / "broker", port=free_port)

    async def life():
        await broker.start()
        keeper = asyncio.create_task(broker.keep_running(0.05))
        old = pid_of(broker)
        os.kill(old, signal.SIGKILL)
        await eventually(lambda: pid_of(broker) != old)
        client = await nats.connect(broker.url)
        assert client.is_connected
        await client.close()
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper
        await broker.stop()

    asyncio.run(life())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_it_dies_with_a_killed_server(tmp_path, free_port):
    program = f"""
        import asyncio, pathlib, time
        from runtime_server.broker.broker_process import Broker, BrokerTls
        asyncio.run(Broker(pathlib.Path({str(tmp_path / "broker")!r}), port={free_port}).start())
        print("up", flush=True)
        time.sleep(60)
    """
    server = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    with server.stdout:
        assert server.stdout.readline() == "up\n"
    child = psutil.Process(int((tmp_path / "broker" / "broker.pid").read_text()))
    server.kill()
    server.wait()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running()


def test_a_missing_binary_names_the_extra(tmp_path, free_port, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtra, match=r"streamsplit_audio-.*\[server\]"):
        asyncio.run(Broker(tmp_path / "broker", port=free_port).start())


def pid_of(broker):
    with contextlib.suppress(OSError):
        return int((broker.state / "broker.pid").read_text())
    return None


def test_those_who_are_refused_cannot_fill_the_disk_with_the_log(tmp_path, free_port):
    limit = 20_000
    access = Access(tmp_path)
    access.set_policy(True, "127.0.0.1")
    broker = Broker(tmp_path / "broker", port=free_port, access=access, log_bytes=limit)

    async def refused():
        reader, writer = await asyncio.open_connection("127.0.0.1", free_port)
        await reader.readline()
        writer.write(b'CONNECT {"user": "x", "pass": "y"}\r\nPING\r\n')
        assert b"ERR" in await reader.readline()
        writer.close()

    async def run():
        await broker.start()
        try:
            for _ in range(1000):
                await refused()
            assert await asyncio.to_thread(access.reload), "what it writes when it has read its configuration is found"
            return [path.stat().st_size for path in broker.state.glob("broker.log*")]
        finally:
            await broker.stop()

    sizes = asyncio.run(run())
    assert 2 <= len(sizes) <= 3
    assert max(sizes) < 2 * limit
