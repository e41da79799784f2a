"""The demo's parts: the emulated link, and what a summary is held to."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import re
import shutil

import pytest
from virtual_time import VirtualTime

from runtime_edge.errors import CheckFailed
from runtime_server.demo.demo_page import write_report
from runtime_server.demo.demo_scenario import devices
from runtime_server.demo.demo_summary import Evidence, check_summary, summarise
from runtime_server.demo.heard import Heard
from runtime_server.harness.relay import LinkState
from runtime_server.harness.shaper import Phase, Shaper
from runtime_server.state.server_state import ServerState

DEVICE = {
    "windows_captured": 10,
    "windows_local": 0,
    "windows_acked": 10,
    "windows_lost": 0,
    "windows_at_server": 10,
    "cuts_used": {"a": 5, "b": 5},
    "generation_start": 1,
    "generation_end": 2,
    "table_swaps": 1,
    "torch_imported": False,
    "alone": False,
}
SUMMARY = {"devices": {"pi": DEVICE}, "parity_max_abs_error": 1e-6, "releases": [{"released": True}]}


def transfer(phases: list[Phase], size: int, one_way_ms: float) -> float:
    """Seconds that `size` bytes take through a shaper to an echo server that answers when it has them all."""

    time = VirtualTime()

    async def run() -> float:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(size)
            writer.write(b"done")
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        shaper = Shaper(server.sockets[0].getsockname()[1], phases, one_way_ms, time.clock, time.sleep)
        await shaper.start()
        try:
            shaper.begin()
            started = time.seconds
            reader, writer = await asyncio.open_connection("127.0.0.1", shaper.port)
            writer.write(bytes(size))
            assert await asyncio.wait_for(reader.readexactly(4), 10) == b"done"
            seconds = time.seconds - started
            writer.close()
            await writer.wait_closed()
            return seconds
        finally:
            await shaper.stop()
            server.close()
            await server.wait_closed()

    return asyncio.run(run())


def test_the_uplink_has_the_rate_and_the_delay_of_the_plan() -> None:
    # 50 kB at 2 Mbit/s are 0.2 s, and the round trip is 2 x 40 ms.
    seconds = transfer([Phase(60, 2.0)], 50_000, 40.0)

    assert 0.27 <= seconds < 0.6


def test_the_rate_changes_with_the_phase_and_the_last_phase_stays() -> None:
    time = VirtualTime()
    shaper = Shaper(1, [Phase(5.0, 8.0), Phase(5.0, 1.0)], 25.0, time.clock)
    time.seconds = 6.0
    assert shaper.now() == LinkState(), "nothing is shaped before the schedule begins"
    shaper.begin()
    assert shaper.now() == LinkState(one_way_ms=25.0, uplink_mbps=8.0)

    assert shaper.uplink_mbps() == 8.0
    time.seconds += 6.0
    assert shaper.uplink_mbps() == 1.0
    time.seconds += 10.0
    assert shaper.uplink_mbps() == 1.0


def test_devices_that_ship_and_one_that_hears_the_same_and_ships_nothing() -> None:
    plan = devices(30.0)

    assert len({device.name for device in plan}) == 4
    assert sum(device.swapped for device in plan) == 1
    (alone,) = [device for device in plan if device.alone]
    assert alone.hears in {device.hears for device in plan if not device.alone}
    assert all(sum(phase.seconds for phase in device.phases) == pytest.approx(30.0) for device in plan)


def test_a_summary_that_keeps_its_promises_passes() -> None:
    check_summary(SUMMARY)


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("windows_acked", 9, "9 of 10 windows"),
        ("windows_lost", 1, "windows acknowledged"),
        ("windows_at_server", 11, "the server counted 11"),
        ("cuts_used", {"a": 10}, "only one cut"),
        ("generation_end", 1, "new generation"),
        ("table_swaps", 0, "no splitter table"),
        ("torch_imported", True, "torch was imported"),
        ("alone", True, "shipped 10 windows"),
    ],
)
def test_each_broken_promise_is_named(field: str, value: object, part: str) -> None:
    summary = copy.deepcopy(SUMMARY)
    summary["devices"]["pi"][field] = value

    with pytest.raises(CheckFailed, match=part):
        check_summary(summary)


def test_without_a_release_nobody_is_asked_to_take_one() -> None:
    summary = copy.deepcopy(SUMMARY)
    summary["devices"]["pi"]["generation_end"] = 1
    summary["releases"] = [{"released": False}]

    check_summary(summary)


def test_a_parity_error_above_the_limit_is_named() -> None:
    with pytest.raises(CheckFailed, match="parity error 2"):
        check_summary({**SUMMARY, "parity_max_abs_error": 2e-4})


def test_evidence_is_collected_from_a_servers_state_as_it_lies_there(tmp_path, small_bundle, tiny_encoder):
    state = ServerState(tmp_path / "server")
    shutil.copytree(small_bundle.path, state.bundle_path(1))
    state.save_weights(1, tiny_encoder.tensors)
    evidence = Evidence.collect(tmp_path, [], "a soundscape", {}, {}, (1.0, 2.0, 3.0, 4.0))
    assert [row["generation"] for row in evidence.generations] == [1]
    assert evidence.encoder == small_bundle.manifest.info.encoder.id


def play(device: str, truth: tuple[str, ...], label: str, generation: int = 1) -> Heard:
    return Heard(device, 0, "x.wav", truth, label, 0.9, 103.0, generation, 1)


def evidence(tmp_path, small_bundle, rows: list[dict[str, object]], heard: dict[str, list[Heard]]) -> Evidence:
    """Of the demo's devices, each of which has written the same results."""
    state = ServerState(tmp_path / "server")
    shutil.copytree(small_bundle.path, state.bundle_path(1))
    target = next(iter(small_bundle.manifest.info.targets))
    plan = [dataclasses.replace(device, target=target) for device in devices(30.0)]
    for device in plan:
        report = {**DEVICE, "bytes_sent": 1000, "traffic": [[3000, 2000, 500], [0, 0, 0, 0], [0, 0, 0, 0]]}
        (tmp_path / f"{device.name}.json").write_text(json.dumps(report))
        (tmp_path / f"{device.name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    server = {"windows": {}, "releases": [], "losses": [], "training_steps": 0, "counters": {}}
    return Evidence.collect(tmp_path, plan, "recordings", heard, server, (100.0, 101.0, 102.0, 200.0))


@pytest.fixture
def summary(tmp_path, small_bundle):
    cut = small_bundle.manifest.info.cuts[-1].name
    took = {"device_ms": 1.0, "network_ms": 2.0, "server_ms": 3.0, "latency_ms": 6.0}
    common = {"embedding": [], "cut": cut, "probe": False, "generation": 1, "bandwidth_mbps": 1.0, "cpu": 0.5, **took}
    rows = [{"window": number, "time": 100.0 + number / 2, **common} for number in range(20)]
    heard = {
        "pi-wifi": [play("pi-wifi", ("rain",), "rain"), play("pi-wifi", ("rain",), "yes", 2)],
        "pi-lte": [play("pi-lte", (), "rain")],
        "laptop": [],
        "pi-alone": [play("pi-alone", ("yes",), "yes")],
    }
    found = evidence(tmp_path, small_bundle, rows, heard)
    return found, summarise(found)


def test_a_summary_says_what_was_labelled_rightly_and_by_whom(summary) -> None:
    heard = summary[1]["heard"]

    assert (heard["recordings"], heard["right"], heard["accuracy"]) == (2, 1, 0.5)
    assert heard["on_the_device_alone"] == {"recordings": 1, "right": 1, "accuracy": 1.0}
    assert heard["not_labelled"] == 1
    assert heard["first_right_s"] == 3.0
    assert {number: part["right"] for number, part in heard["by_generation"].items()} == {"1": 1, "2": 0}
    assert heard["mistakes"] == [{"truth": ["rain"], "heard": "yes", "times": 1}]


def test_bytes_stand_beside_those_of_the_same_audio(summary) -> None:
    device = summary[1]["devices"]["pi-wifi"]

    assert device["seconds"] == 10.0
    assert (device["bytes_as_pcm16"], device["bytes_as_opus"]) == (320_000, 20_000)
    assert device["wire_bytes"] == {"up": 3000, "down": 2000, "of_it_updates": 500}
    assert summary[1]["bytes_saved_share"] == round(1 - 3 * 1000 / (3 * 320_000), 4), "of the three that ship"


@pytest.mark.integration
def test_the_report_tells_it_in_words_and_shows_names_as_text(summary, tmp_path) -> None:
    found, told = summary

    write_report(tmp_path / "report", {**told, "audio": "<script>alert(1)</script>"}, found)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<script>" not in page
    for words in ("1 of 2 got their label (50%)", "as Opus", "predicted from counted work", "No release was attempted"):
        assert words in " ".join(page.split()), words
    pictures = set(re.findall(r'src="([^"]+)"', page))
    assert {"heard.png", "bytes.png", "latency.png", "device-laptop.png"} <= pictures
    assert all((tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


@pytest.mark.integration
def test_of_many_refused_releases_the_report_tells_the_last_ones_and_all_that_passed(summary, tmp_path) -> None:
    found, told = summary
    tried = [
        {"generation": 2 + (step > 40), "released": step == 40, "steps": step, "reason": "the head would be worse"}
        for step in range(10, 90, 10)
    ]

    write_report(tmp_path / "report", {**told, "releases": tried}, found)
    page = (tmp_path / "report" / "report.html").read_text()
    assert [step for step in range(10, 90, 10) if f"After training step {step}," in page] == [40, 60, 70, 80]
    assert "4 earlier attempts were refused, too." in page


@pytest.mark.integration
def test_a_report_without_any_right_label_and_without_a_recording_on_the_device_alone_is_written(
    summary, tmp_path
) -> None:
    found, told = summary
    nothing = {"recordings": 0, "right": 0, "accuracy": None}
    heard = told["heard"] | {"right": 0, "accuracy": 0.0, "first_right_s": None, "on_the_device_alone": nothing}

    write_report(tmp_path / "report", {**told, "heard": heard}, found)
    page = " ".join((tmp_path / "report" / "report.html").read_text().split())
    assert "0 of 2 got their label (0%). A recording counts" in page
    assert "ships nothing, got none of them, because it heard none to the end." in page
