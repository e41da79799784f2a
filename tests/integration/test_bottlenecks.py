"""A device that ships latents to a server, as its table says."""

import harness
import numpy as np
import soundfile

from runtime_edge.formats.bundle import open_bundle
from runtime_edge.formats.wire import decode_frame
from runtime_server.lab.policy_arms import only
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder
from streamsplit_compile.splitter.pricing import bundle_actions


def test_windows_shipped_as_latents_are_finished_by_the_server_in_a_fraction_of_the_bytes(toy, toy_model, tmp_path):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    harness.write_wav(recordings / "room.wav", 60.0, seed=40)
    options = CompileOptions([load_target("rpi4")], cuts="log_mel,one", calibrate=recordings)
    bundle = compile_encoder(load_encoder(toy / "encoder.pt"), options, tmp_path / "bundle")
    table = bundle.table("rpi4")
    action = [action for action in table.costs if action.width and action.answer == "server"][-1]
    name, cut, width = action.name, action.cut, action.width
    server = harness.Server(tmp_path, toy / "encoder.pt", bundle.path, "--no-training")
    server.put_table(harness.always(bundle, "rpi4", name), "pi-latents")
    source = harness.write_wav(tmp_path / "audio.wav", 6.0, seed=41)
    device = harness.Device(tmp_path, server, "pi-latents", source)
    try:
        report = device.finish()
        results, frames = device.results(), server.frames_of("pi-latents")
    finally:
        device.process.signal(9)
        server.process.signal(9)

    assert {(result["cut"], result["width"], result["encoding"]) for result in results} == {(cut, width, "int8")}
    assert {result["finished"] for result in results} == {"server"}
    assert np.median(harness.cosines(results, harness.windows_of(source), toy_model)) > 0.95
    assert report["windows_acked"] == len(results)
    assert not report["errors"]
    plain = bundle.manifest.cut_named(cut).bytes["int8"]
    assert np.median([result["frame_bytes"] for result in results]) < plain / 2
    for frame in frames:
        assert {header.width for header, _ in decode_frame(frame)} == {width}


def test_a_release_brings_bottlenecks_fitted_to_what_devices_hear(toy, tmp_path):
    """They were fitted to a quiet hum; devices hear a whole soundscape, and ship it as it is."""
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    hum = 0.01 * np.sin(2 * np.pi * 100 * np.arange(60 * harness.SAMPLE_RATE) / harness.SAMPLE_RATE)
    soundfile.write(recordings / "hum.wav", hum, harness.SAMPLE_RATE, subtype="PCM_16")
    options = CompileOptions([load_target("rpi4")], cuts="log_mel,one", calibrate=recordings)
    bundle = compile_encoder(load_encoder(toy / "encoder.pt"), options, tmp_path / "bundle")
    fitted = {info.cut: info for info in bundle.manifest.info.bottlenecks}
    assert fitted
    releases = ("--release-steps", 20, "--release-least-s", 0, "--release-tolerance", 1, "--batch", 8)
    server = harness.Server(tmp_path, toy / "encoder.pt", bundle.path, "--training", *releases)
    server.put_table(harness.always(bundle, "rpi4", "waveform"), "pi-1")
    source = harness.write_wav(tmp_path / "audio.wav", 240.0, seed=41)
    device = harness.Device(tmp_path, server, "pi-1", source)
    try:
        harness.until(lambda: _fitted_anew(server, fitted), "a release with a bottleneck that was fitted anew")
        number, cut, width = _fitted_anew(server, fitted)
        harness.until(lambda: device.results()[-1]["generation"] >= number, "the device runs it")
        action = next(one for one in bundle_actions(bundle.manifest, "rpi4") if one.name == f"{cut}/{width}")
        server.put_table(only(bundle.table("rpi4"), action), "pi-1")
        harness.until(lambda: _last(device, width), "windows shipped through it")
        shipped = _last(device, width)
        model = server.model(shipped[-1]["generation"])
        own = [result for result in shipped if result["generation"] == shipped[-1]["generation"]]
        near = np.median(harness.cosines(own, harness.windows_of(source), model))
    finally:
        device.process.signal(9)
        server.process.signal(9)
    assert near > 0.9


def _fitted_anew(server, before):
    """The first generation with a bottleneck of other files, its cut and its widest width; None while there is none."""
    for path in sorted((server.state / "generations").glob("0*")):
        for info in open_bundle(path).manifest.info.bottlenecks if (path / "manifest.json").exists() else ():
            if info.decoder.file != before[info.cut].decoder.file:
                return int(path.name), info.cut, info.widths[-1].width
    return None


def _last(device, width):
    """Windows that the server finished from that width; empty while there are few."""
    found = [one for one in device.results() if one.get("width") == width and one["finished"] == "server"]
    return found if len(found) >= 8 else []
