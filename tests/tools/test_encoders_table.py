"""The page about encoders that were tried says what was measured, and a run goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from tools import encoders_table
from tools.encoders_table import page
from tools.families.public import settled

COMPILED = {
    "parameters": 1_850_000,
    "candidates": 28,
    "cuts": [["frames", 11479], ["layer", 640]],
    "audio": 32000,
    "error": 1.6e-07,
    "seconds": 31.2,
    "peak_mb": 869,
    "notices": [],
}


def test_a_family_is_a_row_of_its_cuts_error_cost_and_smallest_wire() -> None:
    bare = {
        **COMPILED,
        "cuts": [],
        "notices": ["left out x", "no cut is worth shipping: a, has 3 bytes; devices run all"],
    }
    rows = page({"Net": COMPILED, "Bare": bare}).splitlines()
    assert "| Net | 1.9 M | `frames`, `layer` | 2e-07 | 31 | 869 MB | 2% |" in rows
    assert "| Bare | 1.9 M | none (a, has 3 bytes) | 2e-07 | 31 | 869 MB |  |" in rows
    assert [row for row in rows if row.startswith("2 of 2 compile.")]


def test_a_family_that_does_not_compile_says_why_in_its_row() -> None:
    text = page({"Net": COMPILED, "Odd": {"refused": "node a|b:\n no such"}})
    assert "| Odd | | node a/b: no such | | | | |" in text
    assert "1 of 2 compile." in text


def test_batch_norms_are_settled_on_windows() -> None:
    norm = nn.BatchNorm1d(1)
    net = settled(nn.Sequential(nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 1, 16000), norm, nn.Dropout()).eval())
    assert not any(part.training for part in net.modules())
    assert norm.running_var is not None
    assert 0 < norm.running_var.item() < 0.1


def test_what_has_a_result_is_not_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work, out = tmp_path / "work", tmp_path / "encoders.md"
    work.mkdir()
    (work / "mn.json").write_text(json.dumps(COMPILED))
    monkeypatch.setattr(encoders_table, "PAGE", out)
    monkeypatch.setattr("sys.argv", ["encoders_table", "--work", str(work), "--seconds", "-1"])
    assert encoders_table.main() == 0
    assert "the time is over; run again to go on" in capsys.readouterr().out
    assert "| mn | 1.9 M |" in out.read_text()
    assert "1 of 1 compile." in out.read_text()
