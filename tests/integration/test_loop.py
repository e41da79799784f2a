"""The whole loop: a device streams, the server completes, trains and releases, the device follows."""

import signal

import harness


def test_a_device_follows_the_generations_and_every_window_is_completed_by_its_own(
    start, tmp_path, toy_bundle, toy_model
):
    server = start.server("--training", "--release-steps", 100, "--release-least-s", 0, "--batch", 8)
    server.put_table(harness.always(toy_bundle, "rpi4", "log_mel"))
    source = harness.write_wav(tmp_path / "audio.wav", 240.0, seed=1)  # as long as a busy machine may need
    device = start.device(server, "pi-1", source)

    harness.until(lambda: sum(r["generation"] >= 2 for r in device.results()) >= 4, "windows of generation 2")
    device.process.signal(signal.SIGTERM)
    report = device.finish()
    results = device.results()

    windows = harness.windows_of(source)
    assert report["windows_captured"] == len(results) > 20
    assert report["windows_lost"] == report["windows_refused"] == 0
    assert report["torch_imported"] is False
    assert report["errors"] == {}
    assert report["generation_start"] == 1
    assert report["generation_end"] >= max(r["generation"] for r in results) >= 2
    acked = report["windows_acked"]
    assert acked > 20
    harness.until(lambda: server.counted("pi-1") == acked, "every window counted")
    completed = [r for r in results if r["finished"] == "server"]
    first = [r for r in completed if r["generation"] == 1]
    assert len(first) >= 20
    assert harness.cosines(first, windows, toy_model).min() > 0.99
    for generation in {r["generation"] for r in completed}:
        own = [r for r in completed if r["generation"] == generation]
        assert harness.cosines(own, windows, server.model(generation)).min() > 0.99

    # The server has moved on, and yet completes what an earlier prefix sends.
    earlier = server.status()["generation"] - 1
    bundle = server.state / "generations" / f"{earlier:05d}"
    late = start.device(server, "pi-late", source, "--bundle", bundle, "--no-realtime", "--max-windows", 24)
    report = late.finish()
    assert report["generation_end"] == earlier < server.status()["generation"]
    assert report["windows_acked"] == 24
    assert report["windows_refused"] == 0
    assert harness.cosines(late.results(), windows, server.model(earlier)).min() > 0.99

    # Told to stop in the middle of training, it ends in order.
    server.process.signal(signal.SIGTERM)
    server.process.finish()
    assert f"stopped after {acked + 24} windows" in server.process.text()
