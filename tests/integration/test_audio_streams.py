"""Raw audio as a stream, from a real device through a real broker to a real server."""

import ctypes.util

import harness
import pytest


@pytest.mark.parametrize(
    ("audio", "least"),
    [("pcm16-stream", 0.9999), ("flac", 0.9999), ("opus", 0.8)],
)
def test_the_server_completes_windows_of_a_stream(quiet_server, toy_bundle, toy_model, tmp_path, start, audio, least):
    if audio == "opus" and ctypes.util.find_library("opus") is None:
        pytest.skip("libopus is not installed")
    name = f"stream-{audio}"
    quiet_server.put_table(harness.always(toy_bundle, "rpi4", "waveform"), name)
    source = harness.write_wav(tmp_path / "a.wav", 4.0, seed=7)
    device = harness.Device(
        tmp_path, quiet_server, name, source, "--audio-format", audio, "--opus-kbps", 24, "--deadline-ms", 5000
    )
    report = device.finish()
    results = device.results()
    assert {result["encoding"] for result in results} == {audio}
    assert {result["finished"] for result in results} == {"server"}
    assert report["windows_refused"] == 0
    assert harness.cosines(results, harness.windows_of(source), toy_model).mean() > least
    sizes = [result["frame_bytes"] for result in results]
    assert max(sizes[1:]) < sizes[0]  # only the first window is sent whole
