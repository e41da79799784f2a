"""What reaches the broker of devices with a privacy floor: nothing earlier, whatever is pushed, released or spooled."""

import contextlib
import signal

import harness
from nats.js.errors import NotFoundError

from runtime_edge.formats import subjects, wire
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder

NOWHERE = "nats://127.0.0.1:9"


def shipped(server, device):
    """(generation, cut) of every frame of a device that the broker has stored."""

    async def read(hub):
        state = (await hub.stream.stream_info(subjects.STREAM)).state
        numbers = range(state.first_seq, state.last_seq + 1) if state.messages else []
        stored = []
        for number in numbers:
            with contextlib.suppress(NotFoundError):  # what the server tried the stream with is gone
                stored.append(await hub.stream.get_msg(subjects.STREAM, number))
        headers = [wire.decode_frame(item.data)[0][0] for item in stored if item.subject == subjects.frames(device)]
        return {(header.generation, header.cut) for header in headers}

    return server.ask(read)


def test_local_ships_nothing_and_still_gives_results_and_events(start, quiet_server, tmp_path, toy_bundle):
    server, name = quiet_server, "pi-silent"
    server.put_table(harness.always(toy_bundle, "rpi4", "waveform", probe_rate=0.2), name)
    source = harness.write_wav(tmp_path / "audio.wav", 3.0, seed=50)
    device = start.device(server, name, source, "--min-cut", "local", "--no-realtime")
    report = device.finish()
    assert shipped(server, name) == set()
    assert report["windows_local"] == report["windows_captured"] == len(device.results()) > 0
    assert report["bytes_sent"] == report["probes"] == 0
    assert {result["finished"] for result in device.results()} == {"device"}


def test_what_was_spooled_without_the_floor_is_never_sent(start, quiet_server, tmp_path, toy_bundle):
    server, name = quiet_server, "pi-changed-mind"
    source = harness.write_wav(tmp_path / "audio.wav", 3.0, seed=51)
    server.put_table(harness.always(toy_bundle, "rpi4", "waveform"), name)
    start.device(server, name, source, "--no-realtime", "--max-windows", "1").finish()
    before = start.device(NOWHERE, name, source, "--no-realtime", "--drain-s", "0").finish()
    assert before["windows_spooled"] > 0
    report = start.device(server, name, source, "--no-realtime", "--min-cut", "normalize").finish()
    assert report["inherited_dropped"] == before["windows_spooled"]
    assert report["windows_lost"] == 0
    assert report["windows_acked"] == report["windows_captured"]
    # The first run, without the floor, shipped the waveform; what the second one spooled is not among the frames.
    assert {cut for _, cut in shipped(server, name)} == {0, harness.CUTS.index("normalize")}


def test_a_release_that_does_not_know_the_floor_is_refused(start, tmp_path, toy, toy_bundle):
    server, name = start.server("--no-training"), "pi-floor"
    options = CompileOptions([load_target("rpi4")], cuts="log_mel,two", generation=2, key=server.key)
    recut = compile_encoder(load_encoder(toy / "encoder.pt"), options, tmp_path / "recut")
    source = harness.write_wav(tmp_path / "audio.wav", 3.0, seed=52)
    device = start.device(server, name, source, "--loop", "--min-cut", "one")
    device.wait_for_results(4)

    async def release(hub):
        await hub.put_table(harness.always(recut, "rpi4", "waveform"), server.key)
        await hub.publish_bundle(recut)
        await hub.release(recut, "rpi4", server.key)

    server.ask(release)
    device.process.wait_for_line("no cut 'one'")
    device.wait_for_results(len(device.results()) + 4)
    device.process.signal(signal.SIGTERM)
    report = device.finish()
    assert report["generation_end"] == 1
    assert report["errors"]["BundleError"] >= 1
    found = shipped(server, name)
    assert found
    assert {generation for generation, _ in found} == {1}
    assert min(cut for _, cut in found) >= harness.CUTS.index("one")
