"""Generations on their way to devices: only what changed is fetched, what fails goes back, and nobody has to help."""

import json
import shutil
import signal

import harness
import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from reading import read_release

from runtime_edge.base.checked_files import checksum_path
from runtime_edge.errors import BundleError, OlderBundle, SignatureError
from runtime_edge.formats import subjects
from runtime_edge.formats.minisign import generate_key
from runtime_edge.formats.records.release import canary_place
from runtime_edge.inference.prefix import Prefix
from runtime_edge.transport.connection import Connection
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.trial import update_log
from runtime_server.broker.hub import released_bundle
from runtime_server.releases.bundle_publisher import publish_patches
from streamsplit_compile.bundle.bundle_writer import write_manifest
from streamsplit_compile.bundle.calibrate import calibration_set_for
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder, recompile
from streamsplit_compile.cli.main import ssc
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder


def test_a_bundle_that_fails_its_self_test_on_a_device_is_rolled_back_by_the_server(start, tmp_path):
    server = start.server("--no-training")
    source = harness.write_wav(tmp_path / "audio.wav", 4.0, seed=1)
    device = start.device(server, "pi-1", source, "--loop")
    device.wait_for_results(4)
    bad = harness.add_generation(server, 2)
    info = bad.manifest.info
    wrong = replace(info.self_test, embedding=bytes(len(info.self_test.embedding)))
    metadata = replace(bad.manifest.additional_metadata, ssc=replace(info, self_test=wrong))
    write_manifest(bad.path, replace(bad.manifest, additional_metadata=metadata), server.key)
    checksum_path(bad.path).unlink()  # or the server would see that it was changed

    harness.restart(server)
    rolled_back = harness.until(lambda: release(server, 2, "rolled back"), "a rollback")
    assert "self-test embedding is off" in rolled_back["failures"]["pi-1"]
    record = harness.until(lambda: (r := told(server)).generation == 1 and r, "the word")
    assert record.rollback
    assert record.stable is None
    assert server.status()["generation"] == 1

    device.process.signal(signal.SIGTERM)
    report = device.finish()
    assert report["generation_start"] == report["generation_end"] == 1
    assert report["windows_lost"] == 0
    windows = [r["window"] for r in device.results()]  # one is left out where the recording begins anew
    assert windows == sorted(set(windows))
    assert len(windows) == report["windows_captured"]
    # It is not tried again, not even after a restart, and not by a server that starts again.
    harness.restart(server)
    again = start.device(server, "pi-1", source)
    assert again.finish()["generation_end"] == 1
    events = [line["event"] for line in update_log(tmp_path / "pi-1-state").events if line.get("generation") == 2]
    assert events.count("update_failed") == 1


def test_a_generation_that_kills_the_device_is_rolled_back_without_a_person(start, tmp_path):
    server = start.server("--no-training")
    source = harness.write_wav(tmp_path / "audio.wav", 4.0, seed=2)
    options = ["--loop", "--trial-s", "1"]
    device = start.device(server, "pi-1", source, *options)
    harness.until(lambda: "proven" in events(tmp_path / "pi-1-state"), "generation 1 proven")
    harness.add_generation(server, 2)
    harness.restart(server)

    # What a runtime that segfaults looks like from outside: the process is gone right after the swap, every time,
    # and is started again, as a service manager does.
    for _ in range(2):
        harness.until_it_runs(device, 2)
        device.process.signal(signal.SIGKILL)
        device = start.device(server, "pi-1", source, *options)
    record = harness.until(lambda: (r := told(server)).generation == 1 and r, "a rollback")
    assert record.rollback
    assert "died 2 times" in release(server, 2, "rolled back")["failures"]["pi-1"]

    device.wait_for_results(4)
    device.process.signal(signal.SIGTERM)
    report = device.finish()
    assert report["generation_start"] == report["generation_end"] == 1
    assert {r["generation"] for r in device.results()} == {1}
    assert [failure["event"] for failure in report["update_failures"]] == ["rolled_back"]
    assert events(tmp_path / "pi-1-state").count("rolled_back") == 1


def test_canaries_first_then_everybody_then_back_by_hand(start, tmp_path):
    server = start.server("--no-training", "--canary-from", 1, "--canary-share", 0.5, "--healthy-s", 3600)
    names = [f"pi-{number}" for number in range(50)]
    canary = next(name for name in names if canary_place(name, 2) < 0.5)
    other = next(name for name in names if canary_place(name, 2) >= 0.5)
    source = harness.write_wav(tmp_path / "audio.wav", 4.0, seed=3)
    devices = {name: start.device(server, name, source, "--loop", "--trial-s", "8") for name in (canary, other)}
    for device in devices.values():
        device.wait_for_results(4)
    harness.add_generation(server, 2)

    def runs(name, generation):
        results = devices[name].results()
        return bool(results) and results[-1]["generation"] == generation

    harness.restart(server)
    harness.until(lambda: runs(canary, 2), "the canary's update")
    assert release(server, 2, "trial")["share"] == 0.5
    record = told(server)
    assert (record.generation, record.share, record.stable.generation) == (2, 0.5, 1)
    assert runs(other, 1)
    harness.restart(server, "--healthy-s", 1)
    harness.until(lambda: release(server, 2, "stable"), "the promotion")
    assert [r["generation"] for r in devices[other].results()][-1] == 1 or told(server).share == 1.0
    harness.until(lambda: runs(other, 2), "the other's update")

    ask(server, "rollback")
    for name in devices:
        harness.until(lambda name=name: runs(name, 1), f"{name} going back")
    listed = ask(server, "list")
    assert [(row["generation"], row["status"]) for row in listed["releases"]] == [(2, "rolled back"), (1, "stable")]
    assert "after a rollback" in listed["held"]
    assert ask(server, "pin")["held"] == "generation 1 is pinned"
    assert ask(server, "unpin")["held"] == ""
    table = CliRunner().invoke(ssc, ["server", "releases", "list", "--broker", server.url])
    assert "rolled back" in table.output
    refused = CliRunner().invoke(ssc, ["server", "releases", "promote", "7", "--broker", server.url])
    assert "generation 7 is not kept here; there are 1, 2" in str(refused.exception)
    for device in devices.values():
        device.process.signal(signal.SIGTERM)
        report = device.finish()
        assert report["windows_lost"] == 0
        assert report["generation_end"] == 1
        assert report["update_failures"] == []


def test_two_generations_behind_is_completed_and_a_retired_one_is_told_and_updates(start, tmp_path, toy_bundle):
    server = start.server("--no-training")
    # The last cut asks nothing of the server; every window has to.
    server.put_table(harness.always(toy_bundle, "rpi4", "one"))
    source = harness.write_wav(tmp_path / "audio.wav", 3.0, seed=4)
    windows = harness.windows_of(source)
    device = start.device(server, "pi-old", source, "--no-realtime")
    device.finish()
    shutil.copytree(server.state / "generations" / "00001", tmp_path / "first")
    for number in (2, 3):
        harness.add_generation(server, number)
    harness.restart(server)
    ask(server, "promote")

    def behind(bundle):
        older = start.device(server, "pi-behind", source, "--bundle", bundle, "--no-realtime", "--encoding", "float32")
        report = older.finish()
        assert report["windows_acked"] == len(windows)
        return report, older.results()

    report, results = behind(tmp_path / "first")
    assert report["windows_refused"] == 0
    assert harness.cosines(results, windows, server.model(1)).min() > 0.9999
    assert harness.cosines(results, windows, server.model(3)).min() < 0.99, "generations do not differ"

    # Away while three more come out: what it has spooled is of a retired generation.
    url = server.url
    server.process.signal(signal.SIGTERM)
    away = start.device(url, "pi-old", source, "--loop")
    away.wait_for_results(8)
    for number in (4, 5, 6):
        harness.add_generation(server, number)
    server.start()
    ask(server, "promote")
    assert told(server).oldest == 3
    harness.until_it_runs(away, 6)
    harness.until(lambda: finished_by_server(away, 6) >= 4, "windows of generation 6 that the server finished")
    away.process.signal(signal.SIGTERM)
    report = away.finish()
    assert (report["generation_start"], report["generation_end"]) == (1, 6)
    assert report["windows_refused"] > 0, "nobody said that generation 1 is retired"

    report, results = behind(tmp_path / "first")
    assert report["windows_refused"] == len(windows)
    assert {r["finished"] for r in results} <= {"fallback", "device"}
    assert harness.cosines(results, windows, server.model(1)).min() > 0.9999, "answered by the device itself"


def finished_by_server(device, generation):
    return sum(r["generation"] == generation and r["finished"] == "server" for r in device.results())


def test_a_norms_only_update_costs_a_fraction(play, broker, tmp_path, resnet_norms, signing_key):
    old, new = resnet_norms
    (first, full), (second, patched) = play(lambda hub: two_fetches(hub, broker, tmp_path, old, new, signing_key))
    whole = sum(new.manifest.variant(block, "onnx-fp32").bytes for block in new.manifest.info.blocks)
    assert full == whole
    assert first.assets == len(set(old.manifest.info.blocks))
    assert second.patches > 0
    assert second.assets == 0
    assert patched < 0.02 * whole
    print(f"norms only: {patched} bytes instead of {whole}, {patched / whole:.2%}")


def test_a_damaged_patch_costs_the_whole_file_and_nothing_else(play, broker, tmp_path, resnet_norms, signing_key):
    old, new = resnet_norms

    async def damage(hub):
        store = await hub.stream.object_store(subjects.BUNDLES)
        names = [info.name for info in await store.list() if info.name.startswith("patches/")]
        for number, name in enumerate(names):
            data = (await store.get(name)).data
            # Cut short, of something else, and one that gives other bytes.
            await store.put(name, [data[:-3], b"SSCP garbage", (await store.get(names[0])).data][number % 3])
        return len(names)

    _, (second, fetched) = play(
        lambda hub: two_fetches(hub, broker, tmp_path, old, new, signing_key, before_second=damage)
    )
    assert second.assets > 0
    assert fetched > 0.5 * sum(new.manifest.variant(block, "onnx-fp32").bytes for block in new.manifest.info.blocks)
    assert second.bundle.digest == new.digest
    Prefix(second.bundle).self_test()


def test_a_bundle_is_installed_from_a_directory_without_any_server(tmp_path, small_bundle, signing_key):
    store = BundleStore(tmp_path / "state", signing_key.public)
    installed = store.install_local(small_bundle.path, "onnx-fp32")
    assert store.current().digest == installed.digest == small_bundle.digest
    assert installed.table("rpi4") == small_bundle.table("rpi4")
    assert store.install_local(small_bundle.path, "onnx-fp32").path == installed.path
    assert [line["event"] for line in update_log(tmp_path / "state").events] == ["installed", "installed"]

    stranger = BundleStore(tmp_path / "other", generate_key().public)
    with pytest.raises(SignatureError):
        stranger.install_local(small_bundle.path, "onnx-fp32")
    assert not (tmp_path / "other" / "bundles").exists()

    damaged = shutil.copytree(small_bundle.path, tmp_path / "damaged")
    asset = max((damaged / "shared_assets").rglob("*.onnx"), key=lambda path: path.stat().st_size)
    asset.write_bytes(asset.read_bytes()[:-1] + b"x")
    fresh = BundleStore(tmp_path / "fresh", signing_key.public)
    with pytest.raises(BundleError, match="fetch or compile it again"):
        fresh.install_local(damaged, "onnx-fp32")
    assert list((tmp_path / "fresh" / "bundles").iterdir()) == []
    assert fresh.current() is None


def test_an_older_bundle_is_installed_only_when_asked_for(tmp_path, small_bundle, tiny_encoder, signing_key):
    store = BundleStore(tmp_path / "state", signing_key.public)
    newer = recompile(
        small_bundle, tiny_encoder.tensors, tmp_path / "newer", generation=2, windows=None, reference=None,
        key=signing_key,
    )  # fmt: skip
    store.install_local(newer.path, "onnx-fp32")
    with pytest.raises(OlderBundle, match="generation 1 is older than 2"):
        store.install_local(small_bundle.path, "onnx-fp32")
    assert store.current().digest == newer.digest
    store.install_local(small_bundle.path, "onnx-fp32", allow_older=True)
    assert store.current().digest == small_bundle.digest


@pytest.fixture(scope="session")
def resnet_norms(tmp_path_factory, resnet_file, signing_key):
    """ResNet-18 with its norms left in the graph, and the same with other norms."""
    directory = tmp_path_factory.mktemp("norms")
    encoder = load_encoder(resnet_file)
    options = CompileOptions(
        [load_target("rpi4")], cuts="layer2.0,layer4.0", calibration_windows=2, keep_norms=True, key=signing_key
    )
    old = compile_encoder(encoder, options, directory / "old")
    norms = {name.rsplit(".", 1)[0] for name in encoder.tensors if name.endswith("running_mean")}
    tensors = {
        name: value * 1.01 if name.rsplit(".", 1)[0] in norms and value.dtype.kind == "f" else value
        for name, value in encoder.tensors.items()
    }
    windows = calibration_set_for(old.manifest.info, None).windows[:2]
    new = recompile(old, tensors, directory / "new", generation=2, windows=windows, reference=None, key=signing_key)
    return old, new


async def two_fetches(hub, broker, tmp_path, old, new, key, before_second=None):
    """What a device fetches for one bundle and then for the next, and how many bytes of objects came over the link."""
    connection = Connection(broker.url, "pi-1")
    await connection.connect()
    store = BundleStore(tmp_path / "state", key.public)
    await hub.publish_bundle(old)
    try:
        first = await store.fetch(connection, released_bundle(old), "onnx-fp32", "rpi4", None)
        store.adopt(first.bundle)
        await hub.publish_bundle(new)
        await publish_patches(hub, old, new)
        if before_second is not None:
            await before_second(hub)
        second = await store.fetch(connection, released_bundle(new), "onnx-fp32", "rpi4", first.bundle)
    finally:
        await connection.close()
    for block in new.manifest.info.blocks:
        assert second.bundle.block_bytes(block, "onnx-fp32") == new.block_bytes(block, "onnx-fp32")
    return (first, first.fetched_bytes), (second, second.fetched_bytes)


def release(server, generation, status):
    """The server's entry of a generation when it has this status."""
    rows = ask(server, "list")["releases"]
    return next((row for row in rows if (row["generation"], row["status"]) == (generation, status)), None)


def told(server):
    """What devices are told."""

    async def read(hub):
        bucket = await hub.stream.key_value(subjects.RELEASES)
        return read_release((await bucket.get("rpi4")).value)

    return server.ask(read)


def ask(server, action, *arguments):
    """`ssc server releases <action> --json`."""
    command = ["server", "releases", action, *map(str, arguments), "--broker", server.url, "--json"]
    result = CliRunner().invoke(ssc, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def events(state):
    return [line["event"] for line in update_log(state).events]
