"""A server's metrics follow Prometheus's rules for names."""

from collections import Counter
from dataclasses import replace

import promlint
import psutil
from prometheus_client.parser import text_string_to_metric_families

from runtime_edge.base.histogram import Histogram
from runtime_edge.base.prometheus import render
from runtime_server.ingest.frame_replay import ReplayOutcome
from runtime_server.releases.head_judge import HeadScore, HeadScores
from runtime_server.releases.release_gate import Quality, ReleaseOutcome
from runtime_server.telemetry.server_metrics import (
    PEAK_MEMORY,
    RECEIVED,
    ServerMeasurements,
    TrainingStatus,
    families,
    peak_memory_bytes,
)
from runtime_server.telemetry.step_energy import EnergyUse
from runtime_server.training.buffer import BufferSize
from runtime_server.training.embedding_metrics import Geometry
from runtime_server.training.trainer import StepMetrics

QUALITY = Quality(loss=2.0, alignment=0.5, uniformity=-2.0, effective_rank=9.0, probe_accuracy=0.75)
HEADS = HeadScores((HeadScore("rpi4", 120, 118, 95),), ("m2",))
TRAINING = TrainingStatus(
    steps=50,
    saved_steps=40,
    last=StepMetrics(50, 0.1, 64, {"total": 2.5}, Geometry(0.5, -2.0, 9.0), 1.5),
    step_ms=Histogram(),
    buffers={"train": BufferSize(600, 1 << 20, {"silent": 3})},
    outcomes=Counter(released=1),
    judged=ReleaseOutcome(2, True, 50, "better", ("two",), QUALITY, QUALITY, 1.0),
    replayed=ReplayOutcome(9, 8, 1, 0),
    heads=HEADS,
    energy=EnergyUse("RAPL of package-0", 10, 4.0, 50.0, 5.0),
)

ADAPTATION = {
    "sent": 3, "refused": 2, "withdrawn": 1, "bytes": 60_000,
    "windows": {"training": 224, "judging": 32, "dropped": 4, "unused": 5},
}  # fmt: skip

MEASURED = ServerMeasurements(
    encoder="toy", generation=2, uptime_s=60.0, devices=1, windows=700, frames={"done": 700}, connected=True,
    latency_ms={"suffix": Histogram()}, training=TRAINING, adaptation=ADAPTATION,
)  # fmt: skip


@promlint.needs_promtool
def test_promtool_has_nothing_to_say_of_the_metrics_of_a_server_that_trains():
    assert promlint.said_by_promtool(render(families(MEASURED))) == ""


def test_every_metric_of_a_server_that_trains_passes_the_rules_of_prometheus():
    page = render(families(MEASURED)).decode()
    assert promlint.problems(page) == []
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    found = {sample.name for sample in samples}
    assert {"ssc_server_windows_total", "ssc_server_training_step_seconds_sum", "ssc_server_candidate_quality"} <= found
    of_heads = {(sample.name, *sample.labels.values(), sample.value) for sample in samples if "head" in sample.name}
    assert of_heads == {
        ("ssc_server_head_clips", "rpi4", 120), ("ssc_server_head_clips_released", "rpi4", 118),
        ("ssc_server_head_clips_candidate", "rpi4", 95), ("ssc_server_heads_unjudged", 1),
    }  # fmt: skip


def test_what_adaptation_did_is_told_and_left_out_where_it_is_off():
    page = render(families(MEASURED)).decode()
    all_samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    found = {(one.name, *one.labels.values()): one.value for one in all_samples if "adaptation" in one.name}
    outcomes = {("ssc_server_adaptations_total", what): ADAPTATION[what] for what in ("sent", "refused", "withdrawn")}
    windows = {("ssc_server_adaptation_windows_total", use): n for use, n in ADAPTATION["windows"].items()}
    assert found == outcomes | windows | {("ssc_server_adaptation_bytes_total",): 60_000}
    assert "adaptation" not in render(families(replace(MEASURED, adaptation=None))).decode()


def samples(**fields):
    measured = ServerMeasurements("toy", 2, 60.0, 1, 700, {}, True, **fields)
    page = render(families(measured)).decode()
    found = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return {(sample.name, sample.labels.get("source")): sample.value for sample in found}


def test_every_figure_of_what_training_costs_names_its_source():
    found = samples(training=TRAINING, received_bytes=12_345, peak_memory_bytes=67_890)
    by = "RAPL of package-0"
    assert found["ssc_server_training_joules_total", by] == 50.0
    assert found["ssc_server_step_joules", by] == 5.0
    assert found["ssc_server_step_above_idle_joules", by] == 3.0
    assert found["ssc_server_received_bytes_total", RECEIVED] == 12_345
    assert found["ssc_server_peak_memory_bytes", PEAK_MEMORY] == 67_890


def test_without_a_source_there_are_no_joules():
    found = samples(training=replace(TRAINING, energy=None))
    assert not [name for name, _ in found if "joules" in name]
    without_idle = samples(training=replace(TRAINING, energy=EnergyUse("a meter", 1, 1.0, 5.0)))
    assert without_idle["ssc_server_step_joules", "a meter"] == 5.0
    assert ("ssc_server_step_above_idle_joules", "a meter") not in without_idle


def test_the_peak_of_memory_is_in_bytes():
    now = psutil.Process().memory_info().rss
    assert 0.9 * now < peak_memory_bytes() < 100 * now
