from types import SimpleNamespace

import numpy as np

from tools.bench_adapt import AT_ONE_SEED, AT_TWO_SEVERITIES, EVERYWHERE, Ran, cells, kept_lines, measured, run_of


def test_every_arm_plays_at_two_severities_and_two_arms_everywhere():
    found = cells()
    assert len(set(found)) == len(found)
    changing = [cell for cell in found if cell.kind == "changing"]
    assert {(cell.seed, cell.arm) for cell in changing} == {(seed, arm) for seed in range(3) for arm in EVERYWHERE}
    streams = {(cell.kind, cell.order, cell.seed) for cell in found if cell.kind != "changing"}
    assert len(streams) == 5 * 2 * 3
    for severity in (1, 2, 3, 4, 5):
        arms = {cell.arm for cell in found if cell.severity == severity and cell.seed}
        assert arms == {*EVERYWHERE, *(AT_TWO_SEVERITIES if severity in (3, 5) else ())}
    assert {(cell.seed, cell.severity) for cell in found if cell.arm in AT_ONE_SEED} == {(0, 3), (0, 5)}


def test_what_is_kept_is_not_measured_again(tmp_path):
    asked = []

    def run(cell):
        asked.append(cell)
        return Ran(np.array([True, False]), np.array([True, True]), 0.4, 1000, 3, 60)

    bench, kept, wanted = SimpleNamespace(run=run, shares={}), tmp_path / "kept" / "runs.jsonl", cells()[:3]
    none = tmp_path / "none.jsonl"
    told = list(measured(bench, wanted[:2], kept, 1.0, none))
    assert "right 0.5000, clean after 1.0000, shipped 0.40" in told[0]
    list(measured(bench, wanted, kept, 1.0, none))
    assert asked == wanted
    assert list(kept_lines(kept)) == wanted
    assert bench.shares == dict.fromkeys(wanted[:2], 0.4), "and need not be played to find their share"
    again = run_of(kept_lines(kept)[wanted[0]])
    assert (again["right"].tolist(), again["clean"].tolist()) == ([1, 0], [1, 1])
    assert list(measured(bench, cells(), kept, 0.0, none)) == []
    assert list(measured(bench, wanted, tmp_path / "other.jsonl", 1.0, kept)) == [], "published is measured"
