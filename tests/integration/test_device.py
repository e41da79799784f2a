"""The device loop in this process: alone, stopped early, and with what cannot work."""

import asyncio
import dataclasses
import sys

import harness
import pytest

from runtime_edge.config import DeviceConfig
from runtime_edge.device.device import Device
from runtime_edge.device.sinks import CallbackSink
from runtime_edge.errors import BundleError, LinkError, SourceError


@pytest.fixture
def config(toy, tmp_path):
    source = harness.write_wav(tmp_path / "audio.wav", 3.0, seed=20)
    return DeviceConfig("pi-1", str(source), tmp_path / "state", "rpi4", bundle=toy / "bundle", realtime=False)


def run(config):
    """(report, results) of a whole run."""
    results = []
    return asyncio.run(Device(config, [CallbackSink(results.append)]).run()), results


def test_without_a_broker_every_window_is_embedded_here_and_none_is_lost(config, toy_model):
    report, results = run(config)
    windows = harness.windows_of(config.source)
    found = [{"window": r.window, "embedding": r.embedding} for r in results]
    assert harness.cosines(found, windows, toy_model).min() > 0.9999
    assert report["windows_captured"] == report["windows_local"] == len(windows)
    assert report["windows_lost"] == report["bytes_sent"] == 0
    assert report["finished"] == {"device": len(windows)}
    assert report["torch_imported"] == ("torch" in sys.modules)


def test_a_broker_that_cannot_be_reached_spools_everything_and_loses_nothing(config):
    report, results = run(dataclasses.replace(config, broker="nats://127.0.0.1:1", drain_s=0.0))
    assert report["windows_spooled"] == report["windows_captured"] == len(results) > 0
    assert report["windows_lost"] == report["windows_acked"] == 0
    again, _ = run(dataclasses.replace(config, broker="nats://127.0.0.1:1", drain_s=0.0))
    assert again["windows_inherited"] == report["windows_spooled"]
    assert again["windows_spooled"] == report["windows_spooled"] + again["windows_captured"]
    assert again["windows_lost"] == 0


def test_a_spool_too_small_for_an_outage_says_what_was_dropped_and_why(config):
    report, _ = run(dataclasses.replace(config, broker="nats://127.0.0.1:1", drain_s=0.0, spool_mb=0.002))
    assert report["windows_dropped"] == report["dropped"]["spool_full"] > 0
    assert report["windows_spooled"] + report["windows_dropped"] == report["windows_captured"]
    assert report["windows_lost"] == 0


def test_told_to_stop_it_ends_at_once_with_its_report(config):
    async def work():
        results = []
        device = Device(dataclasses.replace(config, realtime=True, loop=True), [CallbackSink(results.append)])
        task = asyncio.create_task(device.run())
        await harness.eventually(lambda: len(results) >= 3)
        device.stop()
        return await task, results

    report, results = asyncio.run(work())
    assert report["windows_captured"] == len(results) >= 3


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"target": "toaster"}, BundleError, "not for 'toaster'"),
        ({"min_cut": "three"}, BundleError, "three"),
        ({"source": "nothing.wav"}, SourceError, "nothing.wav: no such file"),
        ({"bundle": None, "broker": "nats://127.0.0.1:1"}, LinkError, "no bundle on this device yet"),
    ],
)
def test_what_cannot_work_is_one_line(config, changes, error, words):
    with pytest.raises(error, match=words) as raised:
        run(dataclasses.replace(config, **changes))
    assert "\n" not in str(raised.value)


def test_a_sink_that_fails_is_counted_and_ends_nothing(config):
    def fail(result):
        raise OSError(28, "No space left on device")

    results = []
    report = asyncio.run(Device(config, [CallbackSink(fail), CallbackSink(results.append)]).run())

    assert len(results) == report["windows_captured"] > 0
    assert report["errors"] == {"OSError": report["windows_captured"]}
