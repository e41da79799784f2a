"""Bundles that several tests read: compiled once from real encoders, never changed in place."""

import asyncio
import contextlib
import shutil
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is slow, not wrong; what hangs is ended by pytest-timeout.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

sys.path.insert(0, str(Path(__file__).parent / "data"))  # for `--factory toys:Tiny`

ATTACK = Path(__file__).parent / "attack"
WHOLE = {ATTACK, Path(__file__).parent / "integration"}
"""Folders whose tests start programs, all of them."""
DEAR = {"as_server", "broker", "play", "resnet_bundle", "resnet_encoder"}
"""Fixtures that start a program or compile a real encoder."""


def pytest_collection_modifyitems(items):
    """What `make check` leaves out by itself; files that take long for another reason say so in their `pytestmark`.

    What starts programs has one more try, and the summary names what needed it: among thousands, one that waits for
    another program on a machine that stands still fails now and then for nothing. Attacks, kills and damages have none.
    """
    for item in items:
        if WHOLE.intersection(item.path.parents) or DEAR.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.integration)
        if (
            item.get_closest_marker("integration")
            and not item.get_closest_marker("slow")
            and ATTACK not in item.path.parents
        ):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_runtest_setup(item):
    """Layers that a test makes have the same weights in each run, whatever ran before."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(zlib.crc32(item.nodeid.encode()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """What a test has logged may hold names that are not UTF-8, and a report with those ends a worker of xdist."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_terminal_summary(terminalreporter):
    """List what the attacks of one device on a fleet have tried, and which attempts had an effect on others."""
    reports = [report for passed in ("passed", "failed") for report in terminalreporter.stats.get(passed, [])]
    tried = [
        attempt
        for report in reports
        for name, value in report.user_properties
        if name == "attempts"
        for attempt in value
    ]
    if not tried:
        return
    terminalreporter.section("attempts of one device against the rest of a fleet")
    for kind, name, *effects in tried:
        terminalreporter.line(f"{kind}: {name}" + "".join(f" -> {effect}" for effect in effects))
    harmful = sum(bool(effects) for _, _, *effects in tried)
    terminalreporter.line(f"{len(tried)} distinct attempts, {harmful} with an effect on others")


def pytest_addoption(parser):
    parser.addoption(
        "--renew-golden",
        metavar="VERSION",
        help="write tests/data/golden/VERSION with today's code, and the digests of the bundles whose tests run",
    )
    parser.addoption(
        "--all-encoders",
        action="store_true",
        help="hold every shipped encoder's bundle against its recorded digests, not the small ones alone (minutes)",
    )


def pytest_configure(config):
    version = config.getoption("--renew-golden")
    if version and not hasattr(config, "workerinput"):
        from golden_write import write

        write(Path(__file__).parent / "data" / "golden" / version)


@pytest.fixture(scope="session")
def renew_golden(request):
    """The version whose golden data is being renewed, or None."""
    return request.config.getoption("--renew-golden")


@pytest.fixture(scope="session")
def signing_key():
    from runtime_edge.formats.minisign import SecretKey

    return SecretKey(bytes(range(8)), bytes(range(32)))


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory):
    """A plain state_dict of `toys:Tiny`."""
    import torch
    from toys import Tiny

    path = tmp_path_factory.mktemp("tiny") / "tiny.pt"
    torch.save(Tiny().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny_encoder(tiny_file):
    from streamsplit_compile.encoder.encoders import load_encoder

    return load_encoder(tiny_file, "toys:Tiny")


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory, tiny_encoder, signing_key):
    """The tiny encoder in four blocks, for two targets, signed. A `Bundle`; copy its directory to change it."""
    from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
    from streamsplit_compile.cost.targets import load_target

    options = CompileOptions(
        [load_target("rpi4"), load_target("m2")], cuts="stem,down,residual", calibration_windows=4, key=signing_key
    )
    return compile_encoder(tiny_encoder, options, tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture(scope="session")
def adaptable_bundle(tmp_path_factory, tiny_encoder, signing_key):
    """The tiny encoder cut as in `small_bundle`, in each precision, with norms that can be adapted."""
    from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
    from streamsplit_compile.cost.targets import load_target

    options = CompileOptions(
        [load_target("rpi4")], cuts="stem,down,residual", calibration_windows=4, adaptable=True,
        precisions=("fp16", "int8"), key=signing_key,
    )  # fmt: skip
    return compile_encoder(tiny_encoder, options, tmp_path_factory.mktemp("bundles") / "adaptable")


@pytest.fixture(scope="session")
def calibrated_bundle(tmp_path_factory, tiny_encoder, signing_key):
    """The tiny encoder in three blocks, with bottlenecks and exits fitted to a minute of synthesised sound."""
    import soundfile

    from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
    from streamsplit_compile.bundle.soundscape import soundscape
    from streamsplit_compile.cost.targets import load_target

    recordings = tmp_path_factory.mktemp("recordings")
    soundfile.write(recordings / "room.wav", 0.9 * soundscape(60, 4000, 3), 4000)
    options = CompileOptions([load_target("rpi4")], cuts="stem,down", calibrate=recordings, key=signing_key)
    return compile_encoder(tiny_encoder, options, tmp_path_factory.mktemp("bundles") / "calibrated")


@pytest.fixture(scope="session")
def second_bundle(tmp_path_factory, tiny_encoder, small_bundle):
    """The small bundle's next generation, not signed."""
    from streamsplit_compile.bundle.calibrate import calibration_set_for
    from streamsplit_compile.bundle.compiler import recompile

    windows = calibration_set_for(small_bundle.manifest.info, None).windows[:2]
    path = tmp_path_factory.mktemp("bundles") / "second"
    return recompile(small_bundle, tiny_encoder.tensors, path, generation=2, windows=windows, reference=None, key=None)


@pytest.fixture
def bundle_copy(small_bundle, tmp_path):
    """A directory with the small bundle's files, to be damaged."""
    return Path(shutil.copytree(small_bundle.path, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def resnet_file(tmp_path_factory):
    """A checkpoint as `ssc encoder new resnet18` writes it."""
    from streamsplit_compile.encoder.encoders import new_encoder, save_checkpoint

    path = tmp_path_factory.mktemp("resnet") / "encoder.pt"
    save_checkpoint("resnet18", {}, new_encoder("resnet18")[0], path)
    return path


@pytest.fixture(scope="session")
def resnet_encoder(resnet_file):
    from streamsplit_compile.encoder.encoders import load_encoder

    return load_encoder(resnet_file)


@pytest.fixture(scope="session")
def resnet_bundle(tmp_path_factory, resnet_encoder):
    """ResNet-18 with the automatic cuts, for one target, not signed."""
    from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
    from streamsplit_compile.cost.targets import load_target

    options = CompileOptions([load_target("rpi4")], calibration_windows=4)
    return compile_encoder(resnet_encoder, options, tmp_path_factory.mktemp("bundles") / "resnet")


@pytest.fixture
def noting_broker():
    """`async with noting_broker() as (url, said)`: a broker that answers pings and notes the operations it is sent."""
    from runtime_edge.base.aio import cancel_all

    @contextlib.asynccontextmanager
    async def running():
        said, serving = [], []

        async def serve(reader, writer):
            serving.append(asyncio.current_task())
            writer.write(b'INFO {"server_id":"noting","version":"2.11.0","max_payload":1048576,"headers":true}\r\n')
            try:
                while line := await reader.readline():
                    said.append(line.partition(b" ")[0].strip().decode())
                    if said[-1] == "PUB":
                        await reader.readline()  # the payload
                    if said[-1] == "PING":
                        writer.write(b"PONG\r\n")
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", said
        finally:
            server.close()
            await cancel_all(serving)

    return running
