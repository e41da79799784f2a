"""The whole server in this process: what a start announces, a restart finds, and a release does in which order."""

import asyncio
import re
import shutil
import urllib.request

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families
from reading import read_release, read_table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import Tiny
from waiting import eventually

from runtime_edge.base.checked_files import write_checked
from runtime_edge.errors import BundleError, LinkError
from runtime_edge.formats import minisign, subjects
from runtime_server.broker.hub import Hub
from runtime_server.releases.release_gate import ReleaseConfig
from runtime_server.releases.rollout_service import request
from runtime_server.server import Server
from runtime_server.serving.server_config import ServerConfig
from runtime_server.state.server_state import ServerState
from runtime_server.training.losses import LOSSES
from runtime_server.training.trainer import TrainConfig
from streamsplit_compile.cli.main import main
from streamsplit_compile.encoder.encoders import load_encoder

pytestmark = pytest.mark.integration


@pytest.fixture
def run_server(tiny_encoder, small_bundle, tmp_path, free_port):
    """`run_server(work, **config)` runs `await work(its parts, hub)` while a server runs; returns (result, status)."""

    def run(work, **config):
        async def life():
            server = Server(
                tiny_encoder,
                ServerConfig(
                    **{"bundle": small_bundle.path, "state": tmp_path / "server", "port": free_port, "training": False}
                    | config
                ),
            )
            started = asyncio.get_running_loop().create_future()
            running = asyncio.create_task(server.run(started.set_result))
            await asyncio.wait({running, started}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            hub = Hub(server.url, "test")
            await hub.connect()
            try:
                result = await asyncio.wait_for(work(started.result(), hub), 60)
            finally:
                await hub.close()
                server.stop()
                status = await asyncio.wait_for(running, 20)
            return result, status

        return asyncio.run(life())

    return run


async def send(hub, frame, window, name="pi-1"):
    headers = {subjects.IDENTITY_HEADER: subjects.message_id(name, "boot", window)}
    await hub.stream.publish(subjects.frames(name), frame, headers=headers)


async def counted(hub, count, name="pi-1"):
    async def enough():
        return (await hub.server_status())["windows"].get(name, 0) >= count

    await eventually(enough)


async def released(hub, target="rpi4"):
    bucket = await hub.stream.key_value(subjects.RELEASES)
    return read_release((await bucket.get(target)).value)


def test_a_start_announces_the_key_the_release_and_the_tables(run_server, small_bundle, tmp_path):
    async def work(server, hub):
        bucket = await hub.stream.key_value(subjects.RELEASES)
        key = (await bucket.get(subjects.SIGNING_KEY)).value.decode()
        found = {target: (await released(hub, target), await hub.table(target)) for target in ("rpi4", "m2")}
        return key, found, await hub.publish_bundle(server.loaded.generations.newest.bundle)

    (key_text, found, missing), status = run_server(work)
    key = minisign.PublicKey.from_text(key_text, "test")
    assert key_text == (tmp_path / "server" / "signing.pub").read_text()
    for target, (release, record) in found.items():
        assert release.generation == 1
        manifest = (tmp_path / "server" / "generations" / "00001" / "manifest.json").read_bytes()
        minisign.verify(manifest, release.signature, key, "test")
        assert read_table(record, key) == small_bundle.table(target)
    assert missing == 0, "assets were not in the store when the release was announced"
    assert status["generation"] == 1
    assert status["encoder"] == small_bundle.manifest.info.encoder.id


def test_a_restart_goes_on_with_the_newest_complete_generation_and_the_counts(
    run_server, tiny_encoder, small_bundle, tmp_path, sounds, frame_of
):
    async def first(server, hub):
        for window in range(5):
            await send(hub, frame_of(sounds[window], window, 1), window)
        await counted(hub, 5)

    run_server(first)
    state = ServerState(tmp_path / "server")
    shutil.copytree(small_bundle.path, state.bundle_path(3))  # killed before its weights were written

    async def second(server, hub):
        await send(hub, frame_of(sounds[0], 0, 1), 0)
        await send(hub, frame_of(sounds[5], 5, 1), 5)
        await counted(hub, 6)
        return await released(hub), server.loaded.generations.newest.number

    (release, newest), status = run_server(second)
    assert (release.generation, newest) == (1, 1)
    assert status["windows"] == {"pi-1": 6}
    assert status["counters"] == {"windows": 1, "duplicates": 1}


def test_frames_that_came_while_no_server_ran_are_completed_by_the_next(run_server, broker, sounds, frame_of):
    async def nothing(server, hub):
        return None

    async def leave(hub):
        for window in range(4):
            await send(hub, frame_of(sounds[window], window, 1), window)

    run_server(nothing, broker=broker.url)
    asyncio.run(with_hub(broker.url, leave))
    _, status = run_server(lambda server, hub: counted(hub, 4), broker=broker.url)
    assert status["windows"] == {"pi-1": 4}


def test_a_table_that_was_pushed_survives_a_restart_unless_it_does_not_fit(run_server, small_bundle):
    table = small_bundle.table("rpi4")
    pushed = replace(table, hysteresis=0.75)
    foreign = replace(table, bundle_cuts="sha256:" + "0" * 64)

    async def push(server, hub):
        await hub.put_table(pushed, server.loaded.key)
        await hub.put_table(replace(small_bundle.table("m2"), hysteresis=0.75), minisign.generate_key())

    async def look(server, hub):
        found = [read_table(await hub.table(target), server.loaded.key.public) for target in ("rpi4", "m2")]
        await hub.put_table(foreign, server.loaded.key)
        return found

    run_server(push)
    (rpi4, m2), _ = run_server(look)
    assert rpi4 == pushed
    assert m2 == small_bundle.table("m2"), "signed by another key: no device could use it"
    (rpi4, _), _ = run_server(look)
    assert rpi4 == table


def test_a_release_is_on_disk_and_in_the_store_before_a_device_hears_of_it(
    run_server, tmp_path, sounds, frame_of, small_bundle
):
    train = TrainConfig(batch=8, min_windows=16, learning_rate=1e-4)

    async def work(server, hub):
        bucket = await hub.stream.key_value(subjects.RELEASES)
        watcher = await bucket.watch("rpi4")
        for window, sound in enumerate(sounds):
            await send(hub, frame_of(sound, window, 1), window)
        async for entry in watcher:
            if entry is None or (release := read_release(entry.value)).generation == 1:
                continue
            (last,) = ServerState(tmp_path / "server").generations(1)
            store = await hub.stream.object_store(subjects.BUNDLES)
            stored = [
                (await store.get(subjects.asset_object(last[0].manifest.variant(block, "onnx-fp32").file))).data
                for block in small_bundle.manifest.info.blocks
            ]
            return release, last[0], stored

    (release, bundle, stored), status = run_server(
        work, training=True, train=train, release=ReleaseConfig(every_steps=5, least_s=0, tolerance=1.0)
    )
    assert release.generation >= 2
    assert release.manifest == bundle.digest or status["generation"] > release.generation
    assert stored == [bundle.block_bytes(block, "onnx-fp32") for block in bundle.manifest.info.blocks]
    assert status["training_steps"] >= 5
    assert next(outcome["generation"] for outcome in status["releases"] if outcome["released"]) == 2
    assert len(status["losses"]) == status["training_steps"]


def test_a_restart_goes_on_training_where_it_stood(run_server, sounds, frame_of, tmp_path):
    settings = {
        "training": True,
        "train": TrainConfig(batch=8, min_windows=16, share=0.2),
        "release": ReleaseConfig(every_steps=10**6),
        "checkpoint_steps": 5,
    }
    file = tmp_path / "server" / "trainer" / "checkpoint.pt"

    async def first(server, hub):
        for window, sound in enumerate(sounds):
            await send(hub, frame_of(sound, window, 1), window)
        await eventually(lambda: server.loaded.training.trainer.steps >= 12)
        assert file.exists(), "written while it trains"

    async def second(server, hub):
        await eventually(lambda: server.training_loop.replayed is not None)
        return server.training_loop.replayed, (await hub.server_status())["training_steps"]

    _, before = run_server(first, **settings)
    (replayed, started_at), after = run_server(second, **settings)
    assert before["replay"]["read"] <= len(sounds)
    assert (replayed.put_back, replayed.taken, replayed.missing) == (len(sounds), 0, 0)
    assert after["training_steps"] >= started_at >= before["training_steps"] >= 12
    assert after["windows"] == {"pi-1": len(sounds)}
    assert after["counters"] == {}, "nothing came in"
    file.write_bytes(b"damaged")
    (replayed, started_at), status = run_server(second, **settings)
    assert (replayed.put_back, replayed.taken) == (0, len(sounds))
    assert status["windows"] == {"pi-1": len(sounds)}


def test_no_release_lowers_the_score_of_a_pushed_head_until_its_clips_are_given_up(
    run_server, sounds, frame_of, tmp_path, recordings, small_bundle, capsys
):
    lenient = {"tolerance": 100.0, "least_rank": 0.0, "least_uniformity": 0.0, "geometry_tolerance": 100.0}
    settings = {
        "training": True,
        "train": TrainConfig(batch=8, min_windows=16, learning_rate=1.0, ema=0.0),
        "release": ReleaseConfig(every_steps=20, least_s=0, **lenient),
    }

    async def push(hub, *options):
        command = ["server", "label", str(recordings), "--push", "--state", str(tmp_path / "server"), *options]
        await asyncio.to_thread(main, [*command, "--broker", hub.url, "-o", str(tmp_path / "head.json")])

    async def work(server, hub):
        await push(hub)
        for window, sound in enumerate(sounds):
            await send(hub, frame_of(sound, window, 1), window)
        await eventually(lambda: server.training_loop.measure().outcomes["a pushed head got worse"] >= 1)
        listed, highest = await request(hub, "list"), server.loaded.rollout.highest
        assert "will not be judged" not in capsys.readouterr().err
        await push(hub, "--bundle", str(small_bundle.path), "--target", "m2")  # as from another machine
        assert "releases will not be judged by this head" in capsys.readouterr().err
        assert len(list((tmp_path / "server" / "heads").glob("*.clips"))) == 1, "another head's clips stay"
        await push(hub, "--no-judging")
        await eventually(lambda: server.loaded.rollout.highest > highest)
        return listed, highest

    (listed, highest), status = run_server(work, **settings)
    (refused,) = listed["refused"]
    assert re.fullmatch(
        r"head m2 would go from (\d+) to \d+ of its 12 clips .*, head rpi4 would go from .*", refused["reason"]
    )
    judged = [score for outcome in status["releases"] for score in outcome["heads"]["judged"] if outcome["released"]]
    assert all(score["at_95"] >= -2.0 for score in judged)
    assert [entry["generation"] for entry in listed["releases"]] == list(range(highest, 0, -1))
    assert list((tmp_path / "server" / "heads").iterdir()) == []


def check_costs(found, status, sent):
    """Every figure of what training costs is there under its source, in the metrics and in the status."""
    by, energy = status["energy"]["source"], status["energy"]
    assert "CPU seconds" in by
    assert 0 < found["ssc_server_step_above_idle_joules", by] < found["ssc_server_step_joules", by]
    assert 0 < found["ssc_server_training_joules_total", by] <= energy["joules"]
    assert energy["steps"] == status["training_steps"]
    received = found["ssc_server_received_bytes_total", status["received"]["source"]]
    assert sent <= received <= status["received"]["bytes"]
    assert found["ssc_server_peak_memory_bytes", status["peak_memory"]["source"]] <= status["peak_memory"]["bytes"]


def test_what_it_measures_is_there_for_prometheus_and_tensorboard(
    run_server, sounds, frame_of, tmp_path, health_port, recordings
):
    settings = {
        "training": True,
        "train": TrainConfig(batch=8, min_windows=16, loss=LOSSES["hybrid"]),
        "release": ReleaseConfig(every_steps=5, least_s=0, tolerance=1.0),
        "health_port": health_port,
        "tensorboard": tmp_path / "board",
        "probe": recordings,
        "energy": "rpi4",
    }

    def scrape():
        with urllib.request.urlopen(f"http://127.0.0.1:{health_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {(sample.name, *sample.labels.values()): sample.value for sample in samples}

    async def work(server, hub):
        for window, sound in enumerate(sounds):
            await send(hub, frame_of(sound, window, 1), window)
        await hub.stream.publish(subjects.frames("pi-1"), b"garbage")
        await eventually(lambda: server.loaded.training.release_gate.outcomes and server.ingest.counters["garbage"])
        await eventually(lambda: server.loaded.training.trainer.steps >= 10)
        return await asyncio.to_thread(scrape)

    found, status = run_server(work, **settings)
    assert found["ssc_server_windows_total",] == len(sounds)
    assert found["ssc_server_frames_total", "windows"] == len(sounds)
    assert found["ssc_server_frames_total", "garbage"] == 1
    assert found["ssc_server_ledger_damaged_lines",] == 0
    assert found["ssc_server_latency_seconds_count", "reply"] >= len(sounds)
    assert 0 < found["ssc_server_latency_seconds_count", "batch"] <= len(sounds)
    assert found["ssc_server_buffer_windows", "train"] == len(sounds) - 8
    assert found["ssc_server_buffer_windows", "held_out"] == 8
    steps = found["ssc_server_training_steps_total",]
    check_costs(found, status, sent=sum(len(frame_of(sound, 0, 1)) for sound in sounds))
    assert found["ssc_server_training_step_seconds_count",] == steps >= 10
    assert found["ssc_server_releases_total", "released"] >= 1
    for measure in ("alignment", "uniformity", "effective_rank"):
        assert np.isfinite(found["ssc_server_embeddings", measure])
    for measure in ("loss", "alignment", "uniformity", "effective_rank", "probe_accuracy", "knn_accuracy"):
        assert np.isfinite(found["ssc_server_candidate_quality", measure])
        assert np.isfinite(found["ssc_server_released_quality", measure])

    events = EventAccumulator(str(tmp_path / "board")).Reload()
    for name in ("total", "task", "spread", "laplacian"):
        written = {event.step: event.value for event in events.Scalars(f"loss/{name}")}
        assert len(written) == status["training_steps"]
        for row in status["losses"]:
            assert written[row["step"]] == pytest.approx(row[name], rel=1e-6)
    released = [event.step for event in events.Scalars("release/released") if event.value]
    assert released == [outcome["steps"] for outcome in status["releases"] if outcome["released"]]
    assert events.Scalars("release/candidate/knn_accuracy")
    assert all(event.value > 0 for event in events.Scalars("step/per_second"))


def test_a_drop_in_held_out_quality_is_not_published(run_server, sounds, frame_of, tmp_path):
    """Steps that are far too long make everything one point at once. Neither run of held-out windows is at the end,
    so that all have come when the training begins."""
    write_checked(tmp_path / "server" / "held_out.key", bytes(32))
    train = TrainConfig(batch=8, min_windows=len(sounds) - 8, learning_rate=1.0, ema=0.0)

    async def work(server, hub):
        for window, sound in enumerate(sounds):
            await send(hub, frame_of(sound, window, 1), window)
        await eventually(lambda: len(server.loaded.training.release_gate.outcomes) >= 5)
        bucket = await hub.stream.key_value(subjects.RELEASES)
        told = {read_release(entry.value).generation for entry in await bucket.history("rpi4")}
        return told, list(server.loaded.training.release_gate.outcomes)

    (told, outcomes), _ = run_server(work, training=True, train=train, release=ReleaseConfig(every_steps=20, least_s=0))
    assert not any(outcome.released for outcome in outcomes)
    assert {outcome.reason for outcome in outcomes} <= {"embeddings are collapsing", "held-out loss rose"}
    assert told == {1}


def test_a_bundle_of_other_weights_is_refused(small_bundle, tmp_path):
    torch.save(Tiny(seed=1).state_dict(), tmp_path / "other.pt")
    other = load_encoder(tmp_path / "other.pt", "toys:Tiny")
    with pytest.raises(BundleError, match="compiled from other weights"):
        asyncio.run(Server(other, ServerConfig(small_bundle.path, tmp_path / "other")).run())
    assert ServerState(tmp_path / "other").generations(9) == []


def test_a_port_that_is_taken_ends_the_server_with_one_line(run_server, tiny_encoder, small_bundle, tmp_path, broker):
    with pytest.raises(LinkError, match="taken"):
        run_server(None, port=broker.port)


def test_a_copy_of_the_first_bundle_that_was_cut_short_is_made_again(run_server, small_bundle, tmp_path):
    left = ServerState(tmp_path / "server").bundle_path(1)
    left.mkdir()
    shutil.copy(small_bundle.path / "manifest.json", left)  # killed while copying

    async def work(server, hub):
        return server.loaded.generations.newest.bundle.verify_assets()

    assert run_server(work)[0] > 0


async def with_hub(url, work):
    hub = Hub(url, "test")
    await hub.connect()
    try:
        await work(hub)
    finally:
        await hub.close()
