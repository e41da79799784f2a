"""One small encoder and its bundle for all integration tests, and processes that never outlive their test."""

import shutil
import signal
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))  # for `import harness`


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A directory with `encoder.pt`, a torch.export archive, and `bundle`, compiled from it for two targets."""
    import harness
    import torch

    from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
    from streamsplit_compile.cost.targets import load_target
    from streamsplit_compile.encoder.encoders import load_encoder

    directory = tmp_path_factory.mktemp("toy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own archives
        program = torch.export.export(harness.Toy(), (torch.zeros(1, harness.WINDOW),))
        torch.export.save(program, directory / "encoder.pt2")
    (directory / "encoder.pt2").rename(directory / "encoder.pt")
    options = CompileOptions([load_target("rpi4"), load_target("m2")], cuts="log_mel,one,two")
    compile_encoder(load_encoder(directory / "encoder.pt"), options, directory / "bundle")
    return directory


@pytest.fixture(scope="session")
def toy_bundle(toy):
    from runtime_edge.formats.bundle import open_bundle

    return open_bundle(toy / "bundle")


@pytest.fixture(scope="session")
def toy_model():
    import harness

    return harness.Toy()


@pytest.fixture(scope="session")
def quiet_server(toy, tmp_path_factory):
    """A server that completes frames and does not train. Shared: give it devices and tables of your own."""
    import harness

    server = harness.Server(tmp_path_factory.mktemp("quiet"), toy / "encoder.pt", toy / "bundle", "--no-training")
    yield server
    server.process.signal(signal.SIGKILL)


@pytest.fixture
def start(tmp_path, toy):
    """`start(kind, ...)` starts a harness Server or Device; all are killed at the end of the test."""
    import harness

    started = []

    def server(*options, **extra):
        started.append(harness.Server(tmp_path, toy / "encoder.pt", toy / "bundle", *options, **extra))
        return started[-1]

    def device(server, name, source, *options, **extra):
        started.append(harness.Device(tmp_path, server, name, source, *options, **extra))
        return started[-1]

    yield type("Start", (), {"server": staticmethod(server), "device": staticmethod(device)})
    for item in reversed(started):
        item.process.signal(signal.SIGKILL)


@pytest.fixture
def manager(tmp_path):
    """What a service tells systemd; `manager.environment` leads it there."""
    from service_manager import Manager

    made = Manager(tmp_path, watchdog_s=1.5)
    yield made
    made.close()


@pytest.fixture
def broker(tmp_path):
    """A broker of this process, to be stopped and started at will."""
    import asyncio

    import harness

    from runtime_server.broker.broker_process import Broker

    running = Broker(tmp_path / "broker", port=harness.free_port())
    asyncio.run(running.start())
    yield running
    asyncio.run(running.stop())


@pytest.fixture
def play(broker):
    """`play(work)` runs `await work(hub)` on a hub that has made the streams and buckets."""
    import asyncio

    import harness

    from runtime_server.broker.hub import Hub

    async def connected(work):
        hub = Hub(broker.url, "test")
        await hub.connect(create=True)
        try:
            return await asyncio.wait_for(work(hub), harness.PATIENCE_S)
        finally:
            await hub.close()

    return lambda work: asyncio.run(connected(work))


@pytest.fixture
def userland(tmp_path):
    """`userland(suite)` is a clean Debian for arm64, removed after the test; skips the test where there can be none."""
    from tools.arm.debian import DebianCache, Unavailable
    from tools.arm.userland import Userland

    made = []

    def unpacked(suite):
        try:
            made.append(Userland.unpacked(DebianCache(ROOT / ".cache" / "arm"), tmp_path / f"pi-{len(made)}", suite))
        except Unavailable as exc:
            pytest.skip(str(exc))
        return made[-1]

    yield unpacked
    for pi in made:
        shutil.rmtree(pi.root)  # half a gigabyte
