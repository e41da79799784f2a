"""A server's metrics follow Prometheus's rules for names."""

from collections import Counter

import promlint
from prometheus_client.parser import text_string_to_metric_families

from runtime_edge.base.histogram import Histogram
from runtime_edge.base.prometheus import render
from runtime_server.ingest.frame_replay import ReplayOutcome
from runtime_server.releases.head_judge import HeadScore, HeadScores
from runtime_server.releases.release_gate import Quality, ReleaseOutcome
from runtime_server.telemetry.server_metrics import ServerMeasurements, TrainingStatus, families
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
)


MEASURED = ServerMeasurements(
    encoder="toy", generation=2, uptime_s=60.0, devices=1, windows=700, frames={"done": 700}, connected=True,
    latency_ms={"suffix": Histogram()}, training=TRAINING,
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
