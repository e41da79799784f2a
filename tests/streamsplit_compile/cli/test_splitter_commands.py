"""`ssc splitter` on a small bundle: what is printed, written, and refused in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from runtime_edge.errors import CheckFailed, FormatError, MissingExtra, SscError, UsageError
from runtime_edge.formats import minisign
from runtime_edge.formats.records.actions import ShipThresholds
from runtime_edge.formats.records.learnt import Learnt
from runtime_edge.formats.records.table import SplitterTable
from runtime_edge.inference.profile import Profile
from streamsplit_compile.cli.main import splitter

pytestmark = pytest.mark.integration

QUICK = ["--traces", "lte"]
STATE = "bandwidth_mbps=2,cpu=0.3,rtt_ms=60,uncertainty=0.4"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(splitter, [str(argument) for argument in arguments])
    if isinstance(result.exception, SscError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def table(small_bundle, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "table.json"
    run("train", small_bundle.path, "--target", "rpi4", *QUICK, "--seed", 3, "-o", path)
    return path


def read(path: Path) -> SplitterTable:
    return SplitterTable.from_json(path.read_bytes(), str(path))


def test_a_trained_table_fits_its_bundle_and_is_near_the_optimum(table, small_bundle):
    trained = read(table)
    trained.check_cuts([cut.name for cut in small_bundle.manifest.info.cuts])
    assert trained.bundle == small_bundle.digest
    assert trained.metrics["regret"] <= 0.02
    assert "chosen in" in run("show", table)
    assert json.loads(run("show", table, "--json"))["metrics"] == trained.metrics


def test_weights_bins_caps_and_the_key_reach_the_file(small_bundle, tmp_path):
    key = minisign.generate_key()
    (tmp_path / "sign.key").write_text(key.to_text())
    (tmp_path / "sign.key").chmod(0o600)
    first = small_bundle.manifest.info.cuts[1].name
    out = tmp_path / "t.json"
    run("train", small_bundle.path, "--target", "m2", *QUICK, "--beta", 2, "--t-max-ms", 400, "--bins", "cpu=0.4",
        "--bins", "bandwidth_mbps=1,3", "--min-cut", first, "--max-mb-per-hour", 500, "--key", tmp_path / "sign.key",
        "--phi", 0.25, "--ship", "0.05,0.5", "-o", out)  # fmt: skip
    trained = read(out)
    assert (trained.reward.first_share, trained.ship) == (0.25, ShipThresholds(min_entropy=0.05, max_entropy=0.5))
    assert (trained.reward.beta, trained.reward.t_max_ms, trained.reward.alpha) == (2, 400, 10)
    edges = {axis.name: axis.edges for axis in trained.state}
    assert list(edges) == ["uncertainty", "cpu", "bandwidth_mbps", "rtt_ms"], (
        "the others keep the edges chosen for them"
    )
    assert (edges["cpu"], edges["bandwidth_mbps"]) == ((0.4,), (1, 3))
    assert edges["uncertainty"]
    assert edges["rtt_ms"]
    assert trained.actions[0] == first
    assert trained.limits.mb_per_hour == 500
    minisign.verify(out.read_bytes(), (tmp_path / "t.json.minisig").read_text(), key.public, "t.json")


def test_recorded_traces_train_a_table(small_bundle, tmp_path):
    lines = [f"{t},{1 + (t // 30) % 5},{60 + t % 20},{0.1 + 0.5 * ((t // 50) % 2)}" for t in range(400)]
    (tmp_path / "drive.csv").write_text("time_s,bandwidth_mbps,rtt_ms,cpu\n" + "\n".join(lines) + "\n")
    run("train", small_bundle.path, "--target", "rpi4", "--traces", tmp_path / "drive.csv", "-o", tmp_path / "t.json")
    assert read(tmp_path / "t.json").metrics["regret"] <= 0.1
    with pytest.raises(UsageError, match="no such file, and the families are lte, wifi"):
        run("train", small_bundle.path, "--target", "rpi4", "--traces", "sea", "-o", tmp_path / "t.json")


def test_eval_compares_plots_and_fails_when_the_regret_is_too_high(table, small_bundle, tmp_path):
    found = json.loads(run("eval", table, *QUICK, "--json"))
    cuts = {f"always {cut.name}" for cut in small_bundle.manifest.info.cuts}
    assert {"table", "optimum", "heuristic rule", "device only", *cuts} <= set(found)
    assert found["regret"] <= 0.05
    assert found["optimum"]["reward"] >= found["table"]["reward"]
    printed = run("eval", table, *QUICK, "--bundle", small_bundle.path, "--plot", tmp_path / "eval.svg")
    assert "regret" in printed
    assert (tmp_path / "eval.svg").read_text().startswith("<?xml")
    with pytest.raises(CheckFailed, match=r"regret .* is above 0"):
        run("eval", table, "--traces", "wide,outages", "--max-regret", 0)
    with pytest.raises(UsageError, match="--profile needs --bundle"):
        run("eval", table, "--profile", tmp_path / "p.json")


def test_a_profile_of_another_processor_is_used_with_a_warning(table, small_bundle, tmp_path):
    info = small_bundle.manifest.info
    times = [1.0] * len(info.blocks)
    profile = Profile(
        target="rpi4", encoder=info.encoder.id, variant="onnx-fp32", blocks=info.blocks, block_ms=times,
        block_p90_ms=times, runs=5, threads=1, memory_mb=50.0,
        machine={"architecture": "x86_64", "processor": "AMD EPYC"},
    )  # fmt: skip
    (tmp_path / "p.json").write_bytes(profile.to_json())
    said = run("eval", table, *QUICK, "--bundle", small_bundle.path, "--profile", tmp_path / "p.json")
    assert f"warning: {tmp_path / 'p.json'}: measured on AMD EPYC (x86_64), which is not the target rpi4" in said


def test_explain_says_what_is_chosen_and_what_would_change_it(table):
    found = json.loads(run("explain", table, "--state", STATE, "--json"))
    trained = read(table)
    assert found["chosen"] == trained.actions[trained.policy[found["row"]]]
    assert set(found["terms"]) == set(trained.actions)
    said = run("explain", table, "--at", STATE)
    assert "is chosen at bandwidth_mbps 2 Mbit/s, cpu 0.3, rtt_ms 60 ms, uncertainty 0.4" in said
    for arguments, message in (
        ((table,), "give --at, or --device"),
        (("--state", STATE), "give a table file"),
        ((table, "--state", "cpu"), "expected name=number pairs"),
        ((table, "--state", "cpu=0.1"), "bandwidth_mbps, rtt_ms, uncertainty missing"),
    ):
        with pytest.raises(UsageError, match=message):
            run("explain", *arguments)


def test_a_map_is_the_same_every_time(table, tmp_path):
    for name in ("a.svg", "b.svg", "c.png"):
        run("map", table, "-o", tmp_path / name, "--rtt", 80)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"


def test_a_map_without_matplotlib_names_the_extra(table, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "streamsplit_compile.splitter.table_plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"matplotlib is not installed: pip install .*\[demo\]"):
        run("map", table, "-o", tmp_path / "map.svg")


def test_learnt_files_are_merged(table, tmp_path):
    trained = read(table)
    best = trained.policy[0]
    learnt = Learnt(device="pi-1", target="rpi4", table=trained.digest, cells=[(0, best, -3.0, 500)])
    (tmp_path / "learnt.json").write_bytes(learnt.to_json())
    printed = run("merge", table, "--learnt", tmp_path / "learnt.json", "-o", tmp_path / "next.json", "--json")
    assert json.loads(printed)["devices"] == 1
    merged = read(tmp_path / "next.json")
    assert merged.q[0][best] == pytest.approx(trained.q[0][best] - 3.0 * 500 / 520, abs=0.01)
    assert merged.metrics != trained.metrics
    (tmp_path / "learnt.json").write_bytes(b"{}")
    with pytest.raises(FormatError, match=r"learnt\.json: "):
        run("merge", table, "--learnt", tmp_path / "learnt.json", "-o", tmp_path / "next.json")


@pytest.mark.parametrize("command", ["train", "show", "eval", "explain", "replay", "map", "merge", "push"])
def test_every_command_has_help_with_an_example(command):
    assert f"Example: ssc splitter {command}" in run(command, "--help")


@pytest.mark.parametrize("wrong", ["0.4,0.1", "0.1", "a,b", "0.1,0.2,0.3", "0,2"])
def test_wrong_thresholds_are_one_line(small_bundle, tmp_path, wrong):
    with pytest.raises(UsageError, match=r"--ship .*: expected two rising shares of ln C, as in 0\.02,0\.4"):
        run("train", small_bundle.path, "--target", "rpi4", "--ship", wrong, "-o", tmp_path / "t.json")


def test_wrong_bins_are_one_line(small_bundle, tmp_path):
    with pytest.raises(UsageError, match="cpu was given before"):
        run("train", small_bundle.path, "--target", "rpi4", "--bins", "cpu=0.3", "--bins", "cpu=0.6", "-o",
            tmp_path / "t.json")  # fmt: skip
    for wrong in ("cpu=0.6,0.3", "mood=1", "cpu=low"):
        with pytest.raises(UsageError, match="rising edges"):
            run("train", small_bundle.path, "--target", "rpi4", "--bins", wrong, "-o", tmp_path / "t.json")
