"""Budgets with a real server, broker and devices: what does not fit waits, and comes when its time has come."""

import json
import signal

import harness
import msgspec
from click.testing import CliRunner

from runtime_edge.base.checked_files import read_checked, write_checked
from runtime_edge.config import DeviceConfig
from runtime_edge.service.status import read_status
from runtime_edge.transport.budgets import Budgets
from runtime_edge.transport.in_memory import InMemoryTransport
from runtime_edge.updates.trial import update_log
from streamsplit_compile.cli.main import ssc

DAY_S = 86_400


def leave(state, mb_per_day, left_mb):
    """As a run leaves it that has so much left of both budgets."""
    transport = InMemoryTransport()
    transport.updates = transport.down = round((mb_per_day - left_mb) * 1e6)
    Budgets(DeviceConfig(state=state, mb_per_day=mb_per_day, update_mb_per_day=mb_per_day), transport).save()


def pass_time(state, seconds):
    """What was written was written so much earlier."""
    path = state / "traffic.json"
    kept = json.loads(read_checked(path, 1 << 20))
    kept["at"] -= seconds
    kept["spans"] = [[start - seconds, traffic] for start, traffic in kept["spans"]]
    write_checked(path, msgspec.json.encode(kept))


def ends(device):
    device.process.signal(signal.SIGTERM)
    return device.finish()


def test_a_release_waits_for_the_budget_and_arrives_when_its_date_has_come(start, tmp_path):
    server = start.server("--no-training")
    source, state = harness.write_wav(tmp_path / "audio.wav", 4.0, seed=1), tmp_path / "pi-1-state"
    device = start.device(server, "pi-1", source, "--loop")
    device.wait_for_results(4)
    ends(device)
    leave(state, 0.5, 0.0)
    device = start.device(server, "pi-1", source, "--loop", "--update-mb-per-day", "0.5")
    device.wait_for_results(4)
    harness.add_generation(server, 2)
    harness.restart(server)

    def waiting():
        return (read_status(state).report or {}).get("update_waits")

    waits = harness.until(waiting, "the release waits")
    status = read_status(state)
    assert waits["generation"] == 2
    assert waits["until"] > status.written + 60
    assert status.traffic.update_budget.mb_per_day == 0.5
    report = ends(device)
    assert report["generation_end"] == 1
    assert report["update_failures"] == []
    assert report["update_waits"]["generation"] == 2
    assert report["errors"] == {}

    pass_time(state, waits["until"] - status.written + DAY_S)
    device = start.device(server, "pi-1", source, "--loop", "--update-mb-per-day", "0.5")
    harness.until(lambda: device.results() and device.results()[-1]["generation"] == 2, "the release arrives")
    report = ends(device)
    assert report["update_waits"] is None
    assert report["windows_lost"] == 0
    run, hour, month = report["traffic"]
    assert run[2] > 0, "the release took something"
    assert month[3] >= hour[3] > 0
    events = [event["event"] for event in update_log(state).events if event.get("generation") == 2]
    assert events.index("update_waits") < events.index("fetched")


def test_a_server_offers_no_release_that_its_budget_has_no_room_for(start, tmp_path):
    server = start.server("--no-training")
    source = harness.write_wav(tmp_path / "audio.wav", 4.0, seed=3)
    device = start.device(server, "pi-1", source, "--loop")
    device.wait_for_results(4)
    harness.add_generation(server, 2)

    def listed():
        listing = CliRunner().invoke(ssc, ["server", "releases", "list", "--broker", server.url, "--json"])
        return json.loads(listing.output) if listing.exit_code == 0 else {}

    harness.restart(server, "--update-mb-per-day", "0.002")
    waits = "generation 2 waits until 20"  # until it is tried again, the server knows of no more than the last one
    harness.until(lambda: (listed().get("paced") or "").startswith(waits), "the release waits")
    assert [row["generation"] for row in listed()["releases"]] == [1]

    def shown():
        return CliRunner().invoke(ssc, ["server", "status", "--broker", server.url]).output

    # What was counted is told once this run has asked the broker, too.
    harness.until(lambda: "traffic an hour: " in shown(), "the traffic is told")
    assert "generation 2 waits until 20" in shown()
    told = json.loads(CliRunner().invoke(ssc, ["server", "status", "--broker", server.url, "--json"]).output)
    assert told["traffic"]["month"]["up"] > 0

    harness.restart(server, "--update-mb-per-day", "50")
    harness.until_it_runs(device, 2)
    assert [row["generation"] for row in listed()["releases"]] == [2, 1]
    report = ends(device)
    assert report["windows_lost"] == 0


def test_a_device_whose_budget_is_used_up_answers_itself_and_goes_on(start, tmp_path, toy_bundle):
    server = start.server("--no-training")
    server.put_table(harness.always(toy_bundle, "rpi4", "one"))
    source, state = harness.write_wav(tmp_path / "audio.wav", 4.0, seed=2), tmp_path / "pi-1-state"
    mb_per_day, begun_mb = 200.0, 0.2
    leave(state, mb_per_day, begun_mb)
    device = start.device(server, "pi-1", source, "--loop", "--mb-per-day", str(mb_per_day), "--events", "all")

    def status():
        return read_status(state) if (state / "status.json").exists() else None

    held = harness.until(lambda: (now := status()) and now.traffic.held_until and now, "it is used up")
    assert held.traffic.budget.left_bytes <= mb_per_day * 1e6 * 10 / DAY_S
    assert held.uplink.connected, "the connection stays"
    gone_on = harness.until(lambda: acked(now := status()) > acked(held) + 20 and now, "it goes on")
    finished = {result["finished"] for result in device.results()}
    assert {"server", "device"} <= finished
    report = ends(device)
    assert report["windows_lost"] == 0
    assert report["dropped"] == {}
    assert report["events_withheld"] > 0
    assert (
        report["windows_captured"] == report["windows_acked"] + report["windows_spooled"] + report["windows_undecided"]
    )
    # What was left, what has come since, and what was on its way when it ended.
    seconds = gone_on.written - gone_on.since + 10
    allowed = begun_mb * 1e6 + mb_per_day * 1e6 * seconds / DAY_S
    assert sum(gone_on.traffic.run[:2]) <= allowed + 100_000
    assert "is used up until" in device.process.text()
    assert device.process.text().count("is used up until") == 1


def acked(status):
    return status.report["windows_acked"]
