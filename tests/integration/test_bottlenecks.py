"""A device that ships latents to a server, as its table says."""

import harness
import numpy as np

from runtime_edge.formats.wire import decode_frame
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder


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
