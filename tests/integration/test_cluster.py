"""Three brokers that are one: the one that leads is killed and stays away, and nobody but the log notices."""

import asyncio
import os
import signal

import harness
import pytest
from test_guarded_server import ssc

from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.credentials import Address, Credentials
from runtime_server.broker.hub import Hub


class Cluster:
    """`ssc server broker` three times, with one register of devices."""

    def __init__(self, directory):
        self.state = directory / "server"
        ports, routes = ([harness.free_port() for _ in range(3)] for _ in range(2))
        self.names = ("b1", "b2", "b3")
        self.url = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
        self.processes = [
            harness.Process(
                directory / f"{name}.log", "server", "broker", "--state", self.state, "--port", port, "--auth",
                "--name", name, "--cluster-port", route,
                "--routes", ",".join(f"127.0.0.1:{other}" for other in routes if other != route),
            )
            for name, port, route in zip(self.names, ports, routes, strict=True)
        ]  # fmt: skip
        for process in self.processes:
            process.wait_for_line("broker on")

    def ask(self, work):
        async def connected():
            async with Hub(Address(self.url, Credentials(nkey=self.state / "server.nkey")), "test") as hub:
                return await work(hub)

        return asyncio.run(connected())

    def leader(self):
        """Number of the broker that leads the stream of frames; None while there is none."""

        async def ask(hub):
            return (await hub.stream.stream_info(subjects.STREAM)).cluster.leader

        name = self.ask(ask)
        return self.names.index(name) if name else None

    def kill(self, number):
        """The broker, and nobody starts it again."""
        self.processes[number].signal(signal.SIGSTOP)
        os.kill(int((self.state / f"broker-{self.names[number]}" / "broker.pid").read_text()), signal.SIGKILL)

    def close(self):
        for process in self.processes:
            process.signal(signal.SIGKILL)


@pytest.fixture
def cluster(tmp_path):
    (tmp_path / "server").mkdir()
    running = Cluster(tmp_path)
    yield running
    running.close()


def test_the_broker_that_leads_may_die_and_everybody_moves_to_the_others(cluster, toy, toy_bundle, toy_model, tmp_path):
    key, source = tmp_path / "pi-1.creds", harness.write_wav(tmp_path / "audio.wav", 16.0, seed=3)
    told = ssc("server", "device", "add", "pi-1", "-o", key, "--state", cluster.state)
    assert "The running broker knows" in told
    server = harness.Process(
        tmp_path / "server.log", "server", "run", toy / "encoder.pt", toy / "bundle", "--state", cluster.state,
        "--broker", cluster.url, "--credentials", cluster.state / "server.nkey", "--replicas", 3, "--no-training", "-v",
    )  # fmt: skip
    device = None
    try:
        server.wait_for_line("serving generation")
        signing = minisign.read_secret_key(cluster.state / "signing.key")
        cluster.ask(lambda hub: hub.put_table(harness.always(toy_bundle, "rpi4", "one"), signing))
        device = harness.Device(
            tmp_path, cluster.url, "pi-1", source, "--deadline-ms", 300, "--credentials", key, "--drain-s", 60
        )
        device.wait_for_results(16)
        led = cluster.leader()
        cluster.kill(led)
        killed = device.results()[-1]["window"]
        report = device.finish()
        windows, results = harness.windows_of(source), device.results()

        async def counted(hub):
            return (await hub.server_status())["windows"].get("pi-1", 0)

        harness.until(lambda: cluster.ask(counted) == len(windows), "every window counted")
        assert cluster.leader() not in (None, led)
    finally:
        server.signal(signal.SIGKILL)
        if device is not None:
            device.process.signal(signal.SIGKILL)

    assert report["windows_captured"] == report["windows_acked"] == len(windows)
    assert report["windows_lost"] == report["windows_spooled"] == 0
    assert results[-1]["finished"] == "server", "the device or the server did not come back"
    assert any(r["window"] > killed + 4 and r["finished"] == "server" for r in results)
    assert harness.cosines(results, windows, toy_model).min() > 0.99
