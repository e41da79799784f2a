"""What was signed once and is put back later changes nothing; a new signing key counts when a person says so."""

import signal

import harness

from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.records.envelope import MAX_NUMBER, open_record, seal
from runtime_edge.formats.records.numbers import RecordNumbers
from runtime_edge.formats.records.release import decode_release, encode
from runtime_edge.updates.trial import update_log


def test_a_live_device_offered_an_old_signed_release_stays(start, tmp_path):
    server, name = start.server("--no-training"), "pi-1"
    second, third = (harness.next_generation(server, tmp_path / str(number), number) for number in (2, 3))
    source = harness.write_wav(tmp_path / "audio.wav", 4.0, seed=9)
    device = start.device(server, name, source, "--loop")
    device.wait_for_results(4)

    # A signed order to go back to generation 2, as an incident leaves behind.
    release(server, second, rollback=True)
    harness.until_it_runs(device, 2)
    went_back = stored(server)
    release(server, third)
    harness.until_it_runs(device, 3)

    fields = decode_release(open_record(went_back, "release", "rpi4", None, "test").body, "test")
    replays = {
        "is older than": went_back,
        "not signed": seal("release", "rpi4", MAX_NUMBER, encode(fields), None),
        "0 is older than": encode(fields),
        "made for 'm2'": seal("release", "m2", MAX_NUMBER, encode(fields), server.key),
        "with other contents": seal("release", "rpi4", number_of(stored(server)), encode(fields), server.key),
        "signed by key": seal("release", "rpi4", MAX_NUMBER, encode(fields), minisign.generate_key()),
    }
    for reason, record in replays.items():
        put(server, record)
        harness.until(lambda reason=reason: refused(tmp_path / f"{name}-state", reason), reason)
    seen = len(device.results())
    device.wait_for_results(seen + 8)
    device.process.signal(signal.SIGTERM)
    report = device.finish()
    assert report["generation_end"] == 3
    assert {r["generation"] for r in device.results()[seen:]} == {3}
    assert report["errors"] == {"OldRecord": 3, "SignatureError": 2, "FormatError": 1}

    put(server, went_back)
    again = start.device(server, name, source)
    report = again.finish()
    assert {r["generation"] for r in again.results()} == {3}
    assert report["errors"]["OldRecord"] >= 1
    assert report["windows_captured"] == report["windows_acked"]


def test_another_signing_key_is_refused_until_the_device_is_told_to_trust_it(start, tmp_path):
    server = start.server("--no-training")
    source = harness.write_wav(tmp_path / "audio.wav", 2.0, seed=10)
    device = start.device(server, "pi-1", source, "--loop")
    device.wait_for_results(4)
    old = server.key.public
    server.process.signal(signal.SIGTERM)
    for name in ("signing.key", "signing.key.sha256", "signing.pub"):
        (server.state / name).unlink()
    server.start()
    new = server.key.public
    assert new != old

    # A live device keeps what it runs, and the server goes on completing its frames.
    state = tmp_path / "pi-1-state"
    harness.until(lambda: refused(state, f"signed by key {new.hex_id}, but {old.hex_id} is trusted"), "a refusal")
    seen = len(device.results())
    device.wait_for_results(seen + 8)
    device.process.signal(signal.SIGTERM)
    report = device.finish()
    assert set(report["errors"]) == {"SignatureError"}
    assert report["windows_lost"] == 0
    assert minisign.read_public_key(state / "trusted.pub") == old

    # A new device, and one that is told to, trust the new key and run.
    for name in ("trusted.pub", "trusted.pub.sha256"):
        (state / name).unlink()
    for name in ("pi-new", "pi-1"):
        report = start.device(server, name, source).finish()
        assert report["generation_end"] == 1
        assert report["windows_captured"] == report["windows_acked"]
        assert minisign.read_public_key(tmp_path / f"{name}-state" / "trusted.pub") == new
    numbers = RecordNumbers(state / "numbers.json")
    assert numbers.highest("release rpi4", new) > 0
    assert numbers.highest("release rpi4", old) == 0, "numbers of the former key say nothing any more"


def release(server, bundle, rollback=False):
    async def publish(hub):
        await hub.publish_bundle(bundle)
        await hub.release(bundle, "rpi4", server.key, rollback)

    server.ask(publish)


def stored(server):
    """The release record as the broker holds it."""

    async def read(hub):
        return (await (await hub.stream.key_value(subjects.RELEASES)).get("rpi4")).value

    return server.ask(read)


def put(server, record):
    async def write(hub):
        await (await hub.stream.key_value(subjects.RELEASES)).put("rpi4", record)

    server.ask(write)


def number_of(record):
    return open_record(record, "release", "rpi4", None, "test").number


def refused(state, reason):
    """Whether the device's log of updates has a refusal with that reason."""
    return any(reason in line.get("reason", "") for line in update_log(state, 100).events)
