"""The demo's parts: the emulated link, and what a summary is held to."""

from __future__ import annotations

import asyncio
import copy
import shutil

import pytest
from virtual_time import VirtualTime

from runtime_edge.errors import CheckFailed, SourceError
from runtime_server.demo.demo_scenario import devices, share_audio
from runtime_server.demo.demo_summary import Evidence, check_summary
from runtime_server.harness.relay import LinkState
from runtime_server.harness.shaper import Phase, Shaper
from runtime_server.state.server_state import ServerState

DEVICE = {
    "windows_captured": 10,
    "windows_acked": 10,
    "windows_lost": 0,
    "windows_at_server": 10,
    "cuts_used": {"a": 5, "b": 5},
    "generation_start": 1,
    "generation_end": 2,
    "table_swaps": 1,
    "torch_imported": False,
}
SUMMARY = {"devices": {"pi": DEVICE}, "parity_max_abs_error": 1e-6}


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


def test_recordings_are_dealt_out_and_every_device_hears_something(tmp_path) -> None:
    audio = tmp_path / "recordings"
    audio.mkdir()
    for index in range(7):
        (audio / f"{index}.wav").write_bytes(b"RIFF")

    what, sources = share_audio(audio, ["a", "b", "c"], tmp_path / "work", 5.0, 0)

    assert what == "7 recordings from recordings/"
    heard = {name: {path.resolve().name for path in source.iterdir()} for name, source in sources.items()}
    assert [len(files) for files in heard.values()] == [3, 2, 2]
    assert set.union(*heard.values()) == {f"{index}.wav" for index in range(7)}


def test_without_recordings_the_demo_says_that_it_synthesises(tmp_path) -> None:
    what, sources = share_audio(None, ["a", "b"], tmp_path, 2.0, 0)

    assert "synthesised" in what
    first, second = ((source / "soundscape.wav").read_bytes() for source in sources.values())
    assert first != second
    assert len(first) == len(second)


def test_a_directory_without_audio_is_refused(tmp_path) -> None:
    with pytest.raises(SourceError, match="no audio file"):
        share_audio(tmp_path, ["a"], tmp_path / "work", 2.0, 0)


def test_three_devices_one_of_them_swapped() -> None:
    plan = devices(30.0)

    assert len({device.name for device in plan}) == 3
    assert sum(device.swapped for device in plan) == 1
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
    ],
)
def test_each_broken_promise_is_named(field: str, value: object, part: str) -> None:
    summary = copy.deepcopy(SUMMARY)
    summary["devices"]["pi"][field] = value

    with pytest.raises(CheckFailed, match=part):
        check_summary(summary)


def test_a_parity_error_above_the_limit_is_named() -> None:
    with pytest.raises(CheckFailed, match="parity error 2"):
        check_summary({**SUMMARY, "parity_max_abs_error": 2e-4})


def test_evidence_is_collected_from_a_servers_state_as_it_lies_there(tmp_path, small_bundle, tiny_encoder):
    state = ServerState(tmp_path / "server")
    shutil.copytree(small_bundle.path, state.bundle_path(1))
    state.save_weights(1, tiny_encoder.tensors)
    evidence = Evidence.collect(tmp_path, [], "a soundscape", {}, 1.0, 2.0, 3.0)
    assert [row["generation"] for row in evidence.generations] == [1]
    assert evidence.encoder == small_bundle.manifest.info.encoder.id
