"""`ssc advise`, and what `ssc compile` ends with."""

import json

import pytest
from click.testing import CliRunner

from streamsplit_compile.cli.advise_command import advise_


def run(*arguments):
    return CliRunner().invoke(advise_, list(map(str, arguments)), catch_exceptions=False)


def test_two_tables_the_sources_and_a_sentence_for_each_target(small_bundle):
    done = run(small_bundle.path, "--target", "rpi4,m2", "--link", "lte", "--per-gb", 2)
    assert done.exit_code == 0
    for words in ("a window on rpi4 over lte", "a window on m2 over lte", "device only", "hours on 37 Wh", "cost"):
        assert words in done.output
    assert "predicted for the target" in done.output
    last = done.output.strip().splitlines()[-1]
    assert last.startswith("m2 over lte: ")
    tables = done.output[: done.output.index("  times and energy")].splitlines()
    assert len(tables) > 20
    assert max(len(line) for line in tables if not line.startswith("  left out")) <= 80


def test_json_has_the_same_figures_for_programs(small_bundle):
    (found,) = json.loads(
        run(small_bundle.path, "--target", "rpi4", "--active", 0.5, "--battery-wh", 10, "--per-gb", 3, "--json").output
    )
    assert (found["target"], found["link"], found["times"]) == ("rpi4", "wifi", "predicted")
    alone = next(one for one in found["policies"] if one["policy"] == "device only")
    assert alone["cost_a_month"] == pytest.approx(3 * alone["gb_a_month"])
    assert alone["battery_hours"] == pytest.approx(10 / alone["wh_a_month"] * 720)
    assert found["best"] in [one["policy"] for one in found["policies"]]


def test_all_targets_of_the_bundle_unless_some_are_named(small_bundle):
    found = json.loads(run(small_bundle.path, "--json").output)
    assert [one["target"] for one in found] == sorted(small_bundle.manifest.info.targets)
