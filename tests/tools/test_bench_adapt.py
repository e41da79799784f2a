from types import SimpleNamespace

import numpy as np

from tools.bench_adapt import AT_TWO_SEVERITIES, EVERYWHERE, Ran, cells, kept_runs, measured


def test_every_arm_plays_at_two_severities_and_two_arms_everywhere():
    found = cells()
    assert len(set(found)) == len(found)
    streams = {(cell.kind, cell.order, cell.seed) for cell in found}
    assert len(streams) == 5 * 2 * 3
    for severity in (1, 2, 3, 4, 5):
        arms = {cell.arm for cell in found if cell.severity == severity}
        assert arms == {*EVERYWHERE, *(AT_TWO_SEVERITIES if severity in (3, 5) else ())}


def test_what_is_kept_is_not_measured_again(tmp_path):
    asked = []

    def run(cell):
        asked.append(cell)
        return Ran(np.array([True, False]), np.array([True, True]), 0.4, 1000, 3)

    bench, kept, wanted = SimpleNamespace(run=run), tmp_path / "kept" / "runs.jsonl", cells()[:3]
    told = list(measured(bench, wanted[:2], kept, 1.0))
    assert "right 0.5000, clean after 1.0000, shipped 0.40" in told[0]
    list(measured(bench, wanted, kept, 1.0))
    assert asked == wanted
    assert list(kept_runs(kept)) == wanted
    assert kept_runs(kept)[wanted[0]]["right"] == [1, 0]
    assert list(measured(bench, cells(), kept, 0.0)) == []
