"""`make arm-check`: the device runtime on an emulated Raspberry Pi 4, where that machine can be had."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

REPOSITORY = Path(__file__).parents[2]
SKIPPED = 77
RUNTIMES = {"onnxruntime 1.23.2", "tflite-runtime 2.14.0"}


def arm_check(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.arm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=1400)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What the check found; a test below says what of it must hold."""
    report = tmp_path_factory.mktemp("arm") / "arm.json"
    audio = os.environ.get("SSC_TEST_AUDIO")
    done = arm_check(
        "--json", report, "--runtimes", "onnxruntime,tflite-runtime", *(["--audio", audio] if audio else [])
    )
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip().splitlines()[-1].removeprefix("skipped: "))
    assert report.exists(), done.stderr[-4000:] or done.stdout[-4000:]
    return json.loads(report.read_text())


def test_embeddings_are_those_of_this_machine(outcome):
    exact = {row["runtime"]: row for row in outcome["embedded"] if row["variant"].endswith("fp32")}

    assert set(exact) == RUNTIMES
    assert all(row["windows"] >= 4 and row["max_error"] <= 1e-4 for row in exact.values()), exact


def test_frames_of_every_cut_and_encoding_are_completed_by_the_server(outcome):
    runs = {(run["runtime"], run["encoding"]): run for run in outcome["streamed"]}

    assert set(runs) == {(runtime, encoding) for runtime in RUNTIMES for encoding in ("int8", "float16")}
    for (_, encoding), run in runs.items():
        assert min(run["by_cut"].values()) >= 2, run
        assert run["windows"] == run["acked"] == run["counted"] >= 8, run
        assert run["refused"] == run["unanswered"] == 0, run
        assert set(run["cosine"]) == {"pcm16", "float16", encoding}, run
        assert min(run["cosine"].values()) > 0.999, run  # with this machine, cut and encoded alike
        assert run["torch_cosine"]["pcm16"] > 0.999, run


def test_the_doctor_has_nothing_against_it(outcome):
    for findings in outcome["doctor"].values():
        said = {finding["what"].split()[0]: finding for finding in findings}
        assert [finding for finding in findings if finding["state"] == "problem"] == []
        assert "aarch64" in said["Python"]["detail"]
        assert "self-test" in said["bundle"]["detail"]


def test_where_the_machine_cannot_be_had_one_line_says_why(tmp_path):
    done = arm_check("--cache", tmp_path / "cache", "--mirror", "http://127.0.0.1:9")

    assert done.returncode == SKIPPED
    assert done.stdout.splitlines()[-1].startswith("skipped: ")
    assert done.stderr == ""
    assert list((tmp_path / "cache").glob("*")) == []
