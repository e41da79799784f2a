"""Brokers that others run and that lack something: which setting, and how much."""

import asyncio
import contextlib
import logging
import subprocess

import pytest

from runtime_edge.errors import LinkError
from runtime_server.broker.broker_process import broker_program
from runtime_server.broker.hub import Hub


@contextlib.contextmanager
def outside_broker(tmp_path, port, more=""):
    config = tmp_path / "nats.conf"
    config.write_text(f'listen: "127.0.0.1:{port}"\n{more}\n')
    with subprocess.Popen([broker_program(), "-c", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            yield f"nats://127.0.0.1:{port}"
        finally:
            process.terminate()


def create(url):
    """Connect as a server does, once the broker listens."""

    async def connect():
        for attempt in range(1000):
            hub = Hub(url, "server")
            try:
                return await hub.connect(create=True)
            except LinkError as exc:
                if "cannot connect" not in str(exc) or attempt == 999:
                    raise
            finally:
                await hub.close()
            await asyncio.sleep(0.05)

    asyncio.run(connect())


def test_a_broker_without_jetstream_is_told_to_have_it(tmp_path, free_port):
    with (
        outside_broker(tmp_path, free_port) as url,
        pytest.raises(LinkError, match="JetStream is off there; start nats-server with -js"),
    ):
        create(url)


def test_a_store_that_is_too_small_is_told_how_large_to_be(tmp_path, free_port):
    store = f'jetstream {{ store_dir: "{tmp_path}/store", max_file_store: 1GB }}'
    with (
        outside_broker(tmp_path, free_port, store) as url,
        pytest.raises(LinkError, match=r"store is too small: .* reserves 4 GiB; set max_file_store: 8GB"),
    ):
        create(url)


def test_small_payloads_are_a_warning_with_the_setting(tmp_path, free_port, caplog):
    store = f'jetstream {{ store_dir: "{tmp_path}/store", max_file_store: 8GB }}'
    with outside_broker(tmp_path, free_port, store) as url, caplog.at_level(logging.WARNING):
        create(url)
    assert "takes frames of 1048576 bytes at most; set max_payload: 8388608 in its configuration" in caplog.text
