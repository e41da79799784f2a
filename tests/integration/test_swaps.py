"""Tables, bundles and garbage on a running system: what fits takes over, what does not changes nothing."""

import asyncio
import contextlib
import signal

import harness
import msgspec
from msgspec.structs import replace

from runtime_edge.formats import minisign, subjects, wire
from runtime_edge.formats.records.envelope import MAX_NUMBER, seal
from runtime_edge.formats.records.table import cuts_digest
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder


def test_a_table_takes_over_between_windows_and_wrong_ones_are_refused(start, quiet_server, tmp_path, toy_bundle):
    server, name = quiet_server, "pi-tables"
    one, two = (harness.always(toy_bundle, "rpi4", cut) for cut in ("one", "two"))
    server.put_table(one, name)
    source = harness.write_wav(tmp_path / "audio.wav", 6.0, seed=6)
    device = start.device(server, name, source)
    device.wait_for_results(8)

    before = record_of(server, name)
    server.put_table(two, name)
    device.wait_for_cut("two")
    other_cuts = replace(one, bundle_cuts=cuts_digest(["waveform", "elsewhere"]))
    server.put_table(other_cuts, name)
    unmeasured = replace(one, state=(replace(one.state[0], name="battery"),))
    server.put_table(unmeasured, name)
    put_record(server, name, sealed(name, replace(one, target="m2"), server.key))
    put_record(server, name, sealed("pi-other", one, server.key))
    put_record(server, name, sealed(name, one, None))
    put_record(server, name, sealed(name, one, minisign.generate_key()))
    put_record(server, name, sealed(name, one, server.key, number=1))
    put_record(server, name, before)
    put_record(server, name, earlier_version(one, server.key))
    put_record(server, name, b"{")

    report = device.finish()
    cuts = [r["cut"] for r in device.results()]
    swapped = cuts.index("two")
    assert set(cuts[:swapped]) == {"one"}
    assert set(cuts[swapped:]) == {"two"}
    assert report["table_swaps"] == 1
    assert report["errors"] == {"TableError": 5, "SignatureError": 2, "OldRecord": 3}
    assert report["windows_captured"] == report["windows_acked"] == len(harness.windows_of(source))


def test_a_table_for_one_device_wins_over_the_targets_and_is_kept_for_the_next_start(
    start, quiet_server, tmp_path, toy_bundle
):
    server, name = quiet_server, "pi-own"
    server.put_table(harness.always(toy_bundle, "rpi4", "one"))
    source = harness.write_wav(tmp_path / "audio.wav", 3.0, seed=7)
    server.put_table(harness.always(toy_bundle, "rpi4", "two"), name)
    device = start.device(server, name, source)
    device.wait_for_results(4)
    server.put_table(harness.always(toy_bundle, "rpi4", "log_mel"))

    device.finish()
    assert {r["cut"] for r in device.results()} == {"two"}

    # Away from every server: the bundle and the table of the last run.
    alone = start.device("nats://127.0.0.1:9", name, source, "--no-realtime", "--drain-s", "0")
    report = alone.finish()
    assert {r["cut"] for r in alone.results()} == {"two"}
    assert report["windows_spooled"] == report["windows_captured"]
    assert report["windows_lost"] == 0


def test_no_table_and_no_exploration_goes_below_the_privacy_floor(start, quiet_server, tmp_path, toy_bundle):
    server, name = quiet_server, "pi-private"
    source = harness.write_wav(tmp_path / "audio.wav", 20.0, seed=8)
    shipped = 0
    for wanted, explorations_expected in (("two", True), ("waveform", False)):
        server.put_table(harness.always(toy_bundle, "rpi4", wanted, probe_rate=0.2), name)
        report = start.device(server, name, source, "--min-cut", "one", "--no-realtime").finish()
        assert report["windows_acked"] == report["windows_captured"] == len(harness.windows_of(source))
        assert (report["probes"] > 0) == explorations_expected
        shipped += report["windows_acked"]

    cuts = [wire.decode_frame(frame)[0][0].cut for frame in server.frames_of(name)]
    assert len(cuts) == shipped
    assert set(cuts) == {harness.CUTS.index("one"), harness.CUTS.index("two")}


def test_bad_releases_are_refused_and_reported_and_good_ones_taken(start, quiet_server, tmp_path):
    server, name = quiet_server, "pi-updates"
    second, third = (harness.next_generation(server, tmp_path / str(number), number) for number in (2, 3))
    forged = harness.next_generation(server, tmp_path / "forged", 4, minisign.generate_key())
    source = harness.write_wav(tmp_path / "audio.wav", 4.0, seed=9)
    device = start.device(server, name, source, "--target", "m2", "--loop")
    device.wait_for_results(8)

    async def play(hub):
        """Each release and what the device says to it."""
        events = asyncio.Queue()

        async def on_event(message):
            await events.put(msgspec.json.decode(message.data))

        async def answer_to(bundle, rollback=False):
            await hub.release(bundle, "m2", server.key, rollback)
            while (event := await asyncio.wait_for(events.get(), 60.0))["event"] in ("fetched", "proven"):
                pass
            return event

        await hub.subscribe(subjects.events(name), on_event)

        for bundle in (second, third, forged):
            await hub.publish_bundle(bundle)
        asset, intact = changed_asset(second)
        store = await hub.stream.object_store(subjects.BUNDLES)
        await store.put(asset, intact[:99] + bytes([intact[99] ^ 1]) + intact[100:])
        flipped_byte = await answer_to(second)
        await store.put(asset, intact)
        return {
            "flipped byte": flipped_byte,
            "mended": await answer_to(second),
            "wrong key": await answer_to(forged),
            "newer": await answer_to(third),
            "older": await answer_to(second),
            "rollback": await answer_to(second, rollback=True),
        }

    said = server.ask(play)
    device.wait_for_results(len(device.results()) + 4)
    device.process.signal(signal.SIGTERM)
    report, results = device.finish(), device.results()

    for good, generation in (("mended", 2), ("newer", 3), ("rollback", 2)):
        assert (said[good]["event"], said[good]["generation"]) == ("generation", generation)
    for wrong, event, reason in (
        ("flipped byte", "update_failed", "digest"),
        ("wrong key", "update_failed", "key"),
        ("older", "update_refused", "older"),
    ):
        assert said[wrong]["event"] == event
        assert reason in said[wrong]["reason"]
    assert sum(report["errors"].values()) == 3
    assert [report["generation_start"], report["generation_end"]] == [1, 2]
    assert report["windows_lost"] == 0
    windows = [r["window"] for r in results]  # one is left out where the recording begins anew
    assert windows == sorted(set(windows))
    assert len(windows) == report["windows_captured"]
    assert results[-1]["generation"] == 2


def test_a_device_that_cannot_take_the_newest_release_starts_with_its_last_one(start, quiet_server, tmp_path):
    server, name = quiet_server, "pi-restarts"
    source = harness.write_wav(tmp_path / "audio.wav", 2.0, seed=10)
    first = start.device(server, name, source, "--target", "m2")
    before = first.finish()["generation_end"]
    forged = harness.next_generation(server, tmp_path / "forged", 9, minisign.generate_key())

    with released_for_a_while(server, forged):
        report = start.device(server, name, source, "--target", "m2").finish()
    assert report["generation_end"] == before
    assert report["errors"]["SignatureError"] >= 1
    assert report["windows_captured"] == report["windows_acked"]


def test_a_bundle_with_other_cuts_takes_over_with_the_table_that_came_before_it(
    start, quiet_server, tmp_path, toy, toy_bundle
):
    server, name = quiet_server, "pi-recut"
    options = CompileOptions([load_target("m2")], cuts="two", generation=20, key=server.key)
    recut = compile_encoder(load_encoder(toy / "encoder.pt"), options, tmp_path / "recut")
    source = harness.write_wav(tmp_path / "audio.wav", 4.0, seed=16)
    server.put_table(harness.always(toy_bundle, "m2", "one"), name)
    device = start.device(server, name, source, "--target", "m2")
    device.wait_for_results(4)

    server.put_table(harness.always(recut, "m2", "two"), name)
    with released_for_a_while(server, recut):
        report = device.finish()
    seen = {(r["generation"], r["cut"]) for r in device.results()}
    assert seen == {(report["generation_start"], "one"), (20, "two")}
    assert report["table_swaps"] == 1
    assert report["windows_captured"] == report["windows_acked"]

    # The pair was kept together: it starts without a server, too.
    alone = start.device("nats://127.0.0.1:9", name, source, "--target", "m2", "--no-realtime", "--drain-s", "0")
    alone.finish()
    assert {(r["generation"], r["cut"]) for r in alone.results()} == {(20, "two")}


def test_garbage_on_a_devices_subject_disturbs_nobody(start, quiet_server, tmp_path, toy_bundle, toy_model):
    server, name = quiet_server, "pi-victim"
    server.put_table(harness.always(toy_bundle, "rpi4", "one"), name)
    source = harness.write_wav(tmp_path / "audio.wav", 5.0, seed=11)
    before = garbage(server)
    device = start.device(server, name, source)
    device.wait_for_results(4)
    (real, *_) = server.frames_of(name)
    neighbour = "pi-neighbour"

    async def flood(hub):
        sent = [
            (subjects.frames(name), b"", {}),
            (subjects.frames(name), b"garbage", {}),
            (subjects.frames(name), bytes(range(256)) * 64, {subjects.IDENTITY_HEADER: f"{name}.boot1.0"}),
            (subjects.frames(name), real[:-3], {subjects.IDENTITY_HEADER: f"{name}.boot2.0"}),
            (subjects.frames(name), real, {subjects.IDENTITY_HEADER: f"{name}.boot3.7"}),
            (subjects.frames(name), real, {subjects.IDENTITY_HEADER: f"{name}..0"}),
            (subjects.frames(name), real, {subjects.IDENTITY_HEADER: "not an id"}),
            (subjects.frames(name), b"poison", {"Status": "408"}),
            (subjects.frames(neighbour), real, {subjects.IDENTITY_HEADER: f"{name}.boot4.0"}),
            (f"act.0.some.{name}", real, {subjects.IDENTITY_HEADER: f"{name}.boot5.0"}),
        ]
        for subject, data, headers in sent:
            await hub.stream.publish(subject, data, headers=headers or None)
        return len(sent)

    sent = server.ask(flood)
    report = device.finish()

    windows = harness.windows_of(source)
    assert report["windows_captured"] == report["windows_acked"] == len(windows)
    assert harness.cosines(device.results(), windows, toy_model).min() > 0.99
    assert {r["finished"] for r in device.results()} == {"server"}
    harness.until(lambda: garbage(server) == before + sent, "garbage counted")
    counted = server.status()["windows"]
    assert counted[name] == len(windows)
    assert neighbour not in counted
    assert server.ask(unacknowledged) == 0, "garbage comes back"


@contextlib.contextmanager
def released_for_a_while(server, bundle):
    """A release for target m2 that is taken back at the end."""

    async def release(hub):
        bucket = await hub.stream.key_value(subjects.RELEASES)
        before = (await bucket.get("m2")).value
        await hub.publish_bundle(bundle)
        await hub.release(bundle, "m2", server.key)
        return before

    before = server.ask(release)
    yield
    server.ask(lambda hub: put(hub, subjects.RELEASES, "m2", before))


def changed_asset(bundle):
    """Object name and bytes of the block that `next_generation` changes."""
    reference = bundle.manifest.variant("block-02", "onnx-fp32").file
    return subjects.asset_object(reference), bundle.read(reference)


def put_record(server, device, data):
    server.ask(lambda hub: put(hub, subjects.TABLES, subjects.table_key("rpi4", device), data))


def record_of(server, device):
    return server.ask(lambda hub: hub.table("rpi4", device))


def sealed(device, table, key, number=MAX_NUMBER // 2):
    """The record of a table for one device."""
    return seal("table", subjects.table_key("rpi4", device), number, table.to_json(), key)


def earlier_version(table, key):
    """The record as versions before numbers had it."""
    signature = minisign.sign(table.to_json(), key, "table:rpi4")
    return msgspec.json.encode({"table": table.to_json().decode(), "signature": signature})


async def put(hub, bucket, key, data):
    await (await hub.stream.key_value(bucket)).put(key, data)


def garbage(server):
    return server.status()["counters"].get("garbage", 0)


async def unacknowledged(hub):
    infos = [await hub.stream.consumer_info(subjects.STREAM, f"server-{p}") for p in range(subjects.PARTITIONS)]
    return sum(info.num_ack_pending + info.num_pending for info in infos)
