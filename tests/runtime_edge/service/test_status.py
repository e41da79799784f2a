"""What a device says of itself: written, read back, judged, and shown as text and as metrics."""

import json
import socket
import time
import urllib.error
import urllib.request

import msgspec
import promlint
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families
from statuses import counted, status

from runtime_edge.audio import Counters
from runtime_edge.base.files import locked
from runtime_edge.base.histogram import BOUNDS_MS, Histogram
from runtime_edge.base.prometheus import render
from runtime_edge.base.text import moment
from runtime_edge.cli import edge_commands
from runtime_edge.errors import CheckFailed, FormatError, UsageError
from runtime_edge.service.metrics import MetricsServer, metrics
from runtime_edge.service.status import (
    lock_file,
    problems,
    read_status,
    status_file,
    write_status,
)
from runtime_edge.transport.budgets import BudgetStatus


@pytest.fixture
def running(tmp_path):
    with locked(lock_file(tmp_path), "busy"):
        yield tmp_path


def invoke(state, *arguments):
    return CliRunner().invoke(edge_commands.edge, ["status", "--state", str(state), *arguments])


def test_what_is_written_reads_back_the_same(tmp_path):
    said = status()
    write_status(tmp_path, said)
    assert read_status(tmp_path) == said


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, b"\xff", b"x" * (2 << 20)])
def test_a_damaged_status_is_one_error_that_names_the_file(tmp_path, data):
    status_file(tmp_path).write_bytes(data)
    with pytest.raises(FormatError, match=r"status\.json"):
        read_status(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict, None),
        (lambda: {"written_monotonic": time.monotonic() - 100}, "no sign of life for 1"),
        (lambda: {"source_silent_s": 40.0}, "no audio for 40 s"),
        (lambda: {"audio": Counters(measured_rate_hz=48_000)}, "brings 48,000 samples a second"),
        (lambda: {"report": counted()[0].report(1)}, "2 windows are lost"),
    ],
)
def test_a_running_device_is_judged_by_what_it_says(running, changes, words):
    said = status(**changes())
    write_status(running, said)
    found = problems(running, said)
    assert (not found) if words is None else words in "; ".join(found)
    result = invoke(running)
    assert isinstance(result.exception, CheckFailed if words else type(None))


@pytest.mark.parametrize(
    ("ended", "words"), [(None, "ended without a word"), ("it was stopped", "not running: it was stopped")]
)
def test_a_device_whose_process_has_gone_is_not_running_however_fresh_its_word(tmp_path, ended, words):
    write_status(tmp_path, status(ended=ended))
    result = invoke(tmp_path)
    assert result.exception.exit_code == 1
    assert words in str(result.exception)
    assert words in result.output


def test_a_device_whose_every_frame_is_refused_is_not_well_and_the_remedy_is_named(running):
    said = status()
    refused = {**said.report, "windows_refused": 5, "refused_in_a_row": 5, "finished": {"device": 15, "fallback": 5}}
    write_status(running, msgspec.structs.replace(said, report=refused))
    result = invoke(running)
    assert "has refused 5" in str(result.exception)
    assert f"remove {running}/trusted.pub" in str(result.exception)
    assert "7 acknowledged" in result.output
    assert "5 refused by the server" in result.output
    write_status(running, msgspec.structs.replace(said, report={**refused, "finished": {"server": 1}}))
    assert invoke(running).exit_code == 0, "a few refused frames are those of a retired generation"
    for_long = {**refused, "refused_in_a_row": 20, "finished": {"server": 1}}
    write_status(running, msgspec.structs.replace(said, report=for_long))
    assert "has refused 20" in str(invoke(running).exception), "another server has taken this one's place"


def test_a_directory_without_a_device_says_so(tmp_path):
    with pytest.raises(CheckFailed, match="no device has run"):
        raise invoke(tmp_path).exception


def test_another_device_of_the_same_name_is_a_problem(running):
    assert problems(running, status(namesake="another device reports under the name pi-1")) == [
        "another device reports under the name pi-1"
    ]


def test_the_text_shows_everything_a_person_looks_for(running):
    write_status(running, status())
    (running / "updates.jsonl").write_text('{"time": 1.0, "event": "rolled_back", "reason": "died 2 times"}\n')
    output = invoke(running).output
    for words in (
        "pi-1: running since", "1 h 1 min ago", "generation 7", "on trial", "onnx-fp32 on onnxruntime 1.23",
        "nats://gateway:4222 connected", "2.5 Mbit/s, 80 ms, 12.5% unanswered", "cut one, U 0.250",
        "20 captured, 12 acknowledged, 3 kept local (85% shipped), 3 spooled, 0 lost",
        "2 spool_full; of earlier runs 1",
        "4 gated as silence", "1 overruns", "2.0 of 256.0 MiB", "102 MB, 61 °C, throttled", "4 LinkError",
        "broker is away", "rolled_back: reason died 2 times",
        "an hour   1.2 MB up, 2.0 kB down, 0 B of it updates (from 90 min)",
        "a month   888.0 MB up, 999.9 MB down, 46.0 MB of it updates (from 10 d)",
        "counted   by the kernel, with headers from Ethernet upwards",
    ):  # fmt: skip
        assert words in output


def test_budgets_say_what_is_left_and_when_it_goes_on_within_80_columns(running):
    said, until = status(), time.time() + 100_000
    budgets = {"budget": BudgetStatus(mb_per_day=20.0, left_bytes=-1_500_000), "held_until": until, "withheld": 3}
    budgets["update_budget"] = BudgetStatus(mb_per_day=0.5, left_bytes=120_000)
    waits = {
        "generation": 8,
        "manifest": "sha256:" + "cd" * 32,
        "until": until,
        "reason": "46.0 MB wait " + "a while " * 12,
    }
    said = msgspec.structs.replace(
        said,
        traffic=msgspec.structs.replace(said.traffic, **budgets),
        encoder=msgspec.structs.replace(said.encoder, blocks=(3, 8)),
        report={**said.report, "update_waits": waits},
    )
    write_status(running, said)
    output = invoke(running).output
    for words in (
        "budget    1.5 MB overdrawn, 20 MB a day", f"held      frames are sent again from {moment(until)} on",
        "withheld  3 events", "updates   120.0 kB left, 0.5 MB a day", f"generation 8 waits until {moment(until)}",
        "3 of 8 blocks",
    ):  # fmt: skip
        assert words in output
    lines = output.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("  an hour"))
    assert max(map(len, lines[first : first + 10])) <= 80
    never = {**waits, "until": None}
    write_status(running, msgspec.structs.replace(said, report={**said.report, "update_waits": never}))
    assert "generation 8 never fits" in invoke(running).output
    found = json.loads(invoke(running, "--json").output)
    assert found["traffic"]["budget"] == {"mb_per_day": 20.0, "left_bytes": -1_500_000}
    assert found["report"]["update_waits"] == never


def test_an_adaptation_that_runs_is_named(running):
    said = status()
    assert "adapted" not in invoke(running).output
    write_status(running, msgspec.structs.replace(said, report={**said.report, "adaptation": "sha256:" + "ab" * 32}))
    assert "adapted by sha256:abababababab" in " ".join(invoke(running).output.split())


def test_json_holds_the_same_and_says_whether_all_is_well(running):
    write_status(running, status())
    found = json.loads(invoke(running, "--json").output)
    assert found["healthy"] is True
    assert found["problems"] == found["updates"] == []
    assert found["report"]["dropped"] == {"spool_full": 2}
    assert found["spool"]["bytes"] == 2 << 20
    assert found["updates_damaged_lines"] == 0


def test_damaged_lines_of_the_log_of_updates_are_counted(running):
    write_status(running, status())
    (running / "updates.jsonl").write_text('{"crc32": "00000000", "time": 1.0, "event": "proven"}\n{"time": 1.0, "ev')
    assert "damaged lines of the log: 2" in invoke(running).output
    found = json.loads(invoke(running, "--json").stdout)
    assert (found["updates"], found["updates_damaged_lines"]) == ([], 2)


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_are_what_the_status_says():
    server = MetricsServer(0)
    server.latest = status()
    try:
        found = scrape(server.port)
    finally:
        server.close()
    expected = {
        ("ssc_edge_generation",): 7,
        ("ssc_edge_uncertainty",): 0.25,
        ("ssc_edge_uplink_bytes_per_second",): 2.5e6 / 8,
        ("ssc_edge_rtt_seconds",): 0.08,
        ("ssc_edge_loss_ratio",): 0.125,
        ("ssc_edge_spool_frames",): 3,
        ("ssc_edge_temperature_celsius",): 61.25,
        ("ssc_edge_throttled",): 1,
        ("ssc_edge_resident_memory_bytes",): 101.5e6,
        ("ssc_edge_windows_captured_total",): 20,
        ("ssc_edge_windows_total", "acked"): 12,
        ("ssc_edge_windows_dropped_total", "spool_full"): 2,
        ("ssc_edge_windows_finished_total", "server"): 4,
        ("ssc_edge_cut_total", "one"): 15,
        ("ssc_edge_cut_total", "local"): 5,
        ("ssc_edge_errors_total", "LinkError"): 4,
        ("ssc_edge_traffic_bytes_total", "up"): 1_000_000,
        ("ssc_edge_traffic_bytes_total", "down"): 2_000_000,
        ("ssc_edge_traffic_bytes_total", "updates"): 300_000,
        ("ssc_edge_held",): 0,
        ("ssc_edge_update_waits",): 0,
        ("ssc_edge_audio_events_total", "overrun"): 1,
        ("ssc_edge_windows_lost",): 0,
        ("ssc_edge_stage_seconds_bucket", "0.001", "prefix"): 1,
        ("ssc_edge_stage_seconds_bucket", "0.005", "prefix"): 3,
        ("ssc_edge_stage_seconds_bucket", "10.0", "prefix"): 3,
        ("ssc_edge_stage_seconds_bucket", "+Inf", "prefix"): 4,
        ("ssc_edge_latency_seconds_count", "one"): 4,
        ("ssc_edge_latency_seconds_sum", "one"): pytest.approx(70.0065),
    }
    assert {key: found.get(key) for key in expected} == expected
    assert ("ssc_edge_device_info", "sha256:" + "ab" * 32, "pi-1", "onnxruntime 1.23", "rpi4", "onnx-fp32") in found


def test_every_metric_passes_the_rules_of_prometheus():
    assert promlint.problems(render(metrics(status())).decode()) == []


@promlint.needs_promtool
def test_promtool_has_nothing_to_say_of_the_metrics():
    assert promlint.said_by_promtool(render(metrics(status()))) == ""
    assert "base unit" in promlint.said_by_promtool(b"# HELP a_bits A.\n# TYPE a_bits gauge\na_bits 1\n")


def test_the_rules_find_what_breaks_them():
    page = '# HELP uplink_bits \n# TYPE uplink_bits gauge\nuplink_bits 1\n# TYPE wait_ms gauge\nwait_ms{Cut="a"} 1\n'
    assert promlint.problems(page) == [
        "uplink_bits: use a base unit instead of bits",
        "uplink_bits: no help text",
        "wait_ms: write ms out",
        "wait_ms: no help text",
        "wait_ms: label Cut",
    ]


def test_metrics_are_for_this_machine_alone_and_a_taken_port_is_refused():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UsageError, match=f"--metrics-port {other.getsockname()[1]}: .*in use"):
            MetricsServer(other.getsockname()[1])
    server = MetricsServer(0)
    try:
        with pytest.raises(ConnectionRefusedError):  # any other address of this machine
            socket.create_connection(("127.0.0.2", server.port), timeout=5.0)
        assert scrape(server.port) == {}
    finally:
        server.close()
    with pytest.raises(urllib.error.URLError):
        scrape(server.port)


def test_a_histogram_counts_each_duration_under_its_bound():
    histogram = Histogram()
    for ms in (0.0, 1.0, 1.001, 10_000, 10_001):
        histogram.observe(ms)
    assert histogram.counts[0] == 2
    assert histogram.counts[1] == 1
    assert histogram.counts[len(BOUNDS_MS) - 1 :] == [1, 1]
    assert histogram.count == 5
    assert histogram.mean_ms == pytest.approx(20_003.001 / 5)
