"""Splitter tables on running devices: a hundred swaps under load, learning, and what a device says of its choice."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import harness
import pytest
from msgspec.structs import replace

from runtime_edge.formats.records.learnt import Learnt
from runtime_edge.formats.records.table import SplitterTable

SWAPS = 100


def ssc(*arguments, cwd=None):
    command = [str(Path(sys.executable).with_name("ssc")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("swaps", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_swaps_under_load_take_effect_at_the_next_window_and_lose_nothing(
    start, quiet_server, tmp_path, toy_bundle, swaps
):
    name, windows = f"pi-{swaps}-swaps", 15 * swaps
    tables = [
        harness.always(toy_bundle, "rpi4", ("one", "two")[i % 2], created_by=f"swap {i}") for i in range(swaps + 1)
    ]
    quiet_server.put_table(tables[0], name)
    source = harness.write_wav(tmp_path / "audio.wav", 20.0, seed=31)
    # Eight times as fast as real: a window every 16 ms.
    options = "--loop", "--speed", 8, "--max-windows", windows, "--in-flight", 16
    device = start.device(quiet_server, name, source, *options)
    device.wait_for_results(20)

    async def swap_all(hub):
        for index, table in enumerate(tables[1:], 1):
            await hub.put_table(table, quiet_server.key, name)
            # The next table comes as soon as a window has been cut by this one.
            wanted = ("one", "two")[index % 2]
            await harness.eventually(lambda wanted=wanted: device.results()[-1]["cut"] == wanted, f"swap {index}")

    quiet_server.ask(swap_all)
    report = device.finish()

    cuts = [result["cut"] for result in device.results()]
    numbers = [result["window"] for result in device.results()]  # one is left out where the recording begins anew
    assert numbers == sorted(set(numbers))
    changes = sum(before != after for before, after in itertools.pairwise(cuts))
    assert report["table_swaps"] == changes == swaps
    assert set(cuts) == {"one", "two"}
    assert len(cuts) == report["windows_captured"] == report["windows_acked"] == windows
    assert report["windows_lost"] == report["windows_spooled"] == report["windows_dropped"] == 0
    harness.until(lambda: quiet_server.counted(name) == windows, "every window in the server's ledger")
    assert not report["errors"]


def test_a_device_learns_on_top_of_its_table_and_the_next_table_takes_it_in(start, quiet_server, tmp_path, toy_bundle):
    name = "pi-learns"
    table = harness.always(toy_bundle, "rpi4", "one")
    quiet_server.put_table(table, name)
    source = harness.write_wav(tmp_path / "audio.wav", 12.0, seed=32)
    device = start.device(quiet_server, name, source, "--learn")
    device.wait_for_results(10)
    harness.until(
        lambda: quiet_server.ask(lambda hub: hub.presence()).get(name, {}).get("state"), "a report with its state"
    )
    explained = json.loads(ssc("splitter", "explain", "--device", name, "--broker", quiet_server.url, "--json"))
    assert set(explained["state"]) == {"uncertainty", "cpu", "bandwidth_mbps", "rtt_ms"}
    assert explained["chosen"] == "one"
    assert set(explained["terms"]) == set(table.actions)
    device.finish()

    record = quiet_server.ask(lambda hub: hub.learnt())[name]
    learnt = Learnt.from_json(record, "broker")
    assert (learnt.device, learnt.table) == (name, table.digest)
    assert sum(visits for *_, visits in learnt.cells) > 20
    assert (tmp_path / f"{name}-state" / "learnt.json").read_bytes() == record

    (tmp_path / "table.json").write_bytes(table.to_json())
    merged = ssc(
        "splitter", "merge", "table.json", "--broker", quiet_server.url, "-o", "next.json", "--json", cwd=tmp_path
    )
    assert json.loads(merged)["devices"] == 1
    following = SplitterTable.from_json((tmp_path / "next.json").read_bytes(), "next.json")
    assert following.q != table.q
    same = {name: getattr(table, name) for name in ("q", "metrics", "created_by")}
    assert replace(following, **same) == table


def test_recorded_results_replay_against_any_table(start, quiet_server, tmp_path, toy_bundle):
    name = "pi-replay"
    quiet_server.put_table(harness.always(toy_bundle, "rpi4", "one"), name)
    device = start.device(quiet_server, name, harness.write_wav(tmp_path / "audio.wav", 4.0, seed=33))
    report = device.finish()
    (tmp_path / "two.json").write_bytes(harness.always(toy_bundle, "rpi4", "two").to_json())
    found = json.loads(ssc("splitter", "replay", tmp_path / f"{name}.jsonl", tmp_path / "two.json", "--json"))
    assert found["windows"] == report["windows_captured"]
    assert (found["taken"]["one"], found["chosen"]["two"], found["changed"]) == (1.0, 1.0, 1.0)
