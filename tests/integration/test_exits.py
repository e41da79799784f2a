"""A device whose exit answers first, and a server that says more."""

import harness
import numpy as np

from runtime_edge.formats.wire import decode_frame
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder


def test_exits_answer_at_once_and_the_server_revises_them(toy, toy_model, tmp_path):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    harness.write_wav(recordings / "room.wav", 60.0, seed=40)
    options = CompileOptions([load_target("rpi4")], cuts="log_mel,one", calibrate=recordings)
    bundle = compile_encoder(load_encoder(toy / "encoder.pt"), options, tmp_path / "bundle")
    action = [action for action in bundle.table("rpi4").costs if action.answer == "exit"][-1]
    server = harness.Server(tmp_path, toy / "encoder.pt", bundle.path, "--no-training")
    server.put_table(harness.always(bundle, "rpi4", action.name), "pi-exits")
    source = harness.write_wav(tmp_path / "audio.wav", 6.0, seed=41)
    device = harness.Device(tmp_path, server, "pi-exits", source, "--revise-above", "0", "--events", "all")
    try:
        report = device.finish()
        results, frames = device.results(), server.frames_of("pi-exits")
    finally:
        device.process.signal(9)
        server.process.signal(9)

    first = [result for result in results if result["answer"] == "exit"]
    final = [result for result in results if result["answer"] == "server"]
    windows = harness.windows_of(source)
    assert [result["window"] for result in first] == list(range(len(windows)))
    assert [result["window"] for result in final] == list(range(len(windows)))
    assert {result.get("revises", 0) for result in first} == {0}
    assert {result["revises"] for result in final} == {1}
    assert {result["cut"] for result in results} == {action.cut}
    near = action.exit_quality[0]
    assert np.median(harness.cosines(final, windows, toy_model)) > 0.95
    assert np.median(harness.cosines(first, windows, toy_model)) > near - 0.2
    assert all(one["latency_ms"] < two["latency_ms"] for one, two in zip(first, final, strict=True))
    assert all(result["novelty"] >= 0 for result in results)
    assert (report["finished"], report["revised"]) == ({"exit": len(windows)}, len(windows))
    assert report["windows_acked"] == len(windows)
    assert not report["errors"]
    assert len([header for frame in frames for header, _ in decode_frame(frame)]) == len(windows)
