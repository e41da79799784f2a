"""An audit end to end on a small bundle: what is measured, resumed, stopped and signed."""

import shutil
from pathlib import Path

import pytest

from runtime_edge.errors import CheckFailed, FormatError, UsageError
from runtime_edge.formats.bundle import open_bundle
from streamsplit_compile.audit.audit_run import AuditPlan, check_key, run_audit, write_audit
from streamsplit_compile.audit.outlets import outlets_of
from streamsplit_compile.bundle.compiler import recompile

PLAN = AuditPlan(members=True)


def silent(what, done, total):
    pass


@pytest.fixture(scope="module")
def audited(calibrated_bundle, spoken, tmp_path_factory):
    """What an audit found, and the file of its results."""
    results = tmp_path_factory.mktemp("audit") / "results.jsonl"
    return run_audit(calibrated_bundle, spoken, PLAN, results, silent), results


def test_every_cut_width_and_exit_has_its_numbers(audited, calibrated_bundle, spoken):
    found, _ = audited
    wanted = outlets_of(calibrated_bundle, ("int8",))
    assert len(found.shipped) + len(found.exits) == len(wanted)
    assert (found.words, found.recordings, found.seeds) == (2, int(spoken.test.sum()), 1)
    assert all(leak.words.low <= leak.words.rate <= leak.words.high for leak in (*found.shipped, *found.exits))
    raw = next(leak for leak in found.shipped if leak.cut == "waveform")
    assert raw.words.rate > 0.8
    assert found.members is not None


def test_an_audit_goes_on_where_it_was_even_after_a_line_was_cut_short(audited, calibrated_bundle, spoken, tmp_path):
    found, whole = audited
    lines = whole.read_bytes().splitlines(keepends=True)
    results = tmp_path / "results.jsonl"
    results.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    said = []
    again = run_audit(calibrated_bundle, spoken, PLAN, results, lambda what, done, total: said.append((what, done)))
    assert again == found
    assert [done for _, done in said] == [len(lines) - 1]


def test_when_the_time_is_up_it_says_how_to_go_on(calibrated_bundle, spoken, tmp_path):
    times = iter([0.0, 0.0, 3600.0])
    plan = AuditPlan(hours=1.0, clock=lambda: next(times))
    with pytest.raises(CheckFailed, match=r"1 h are over with 1 of \d+ attacks made; give the same command again"):
        run_audit(calibrated_bundle, spoken, plan, tmp_path / "results.jsonl", silent)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1


def test_results_of_another_bundle_or_damaged_ones_are_refused(audited, small_bundle, spoken, tmp_path):
    _, whole = audited
    with pytest.raises(FormatError, match="line 1: of another bundle or of other recordings"):
        run_audit(small_bundle, spoken, PLAN, whole, silent)
    damaged = tmp_path / "results.jsonl"
    damaged.write_text('{"audit": 3}\n')
    with pytest.raises(FormatError, match="line 1"):
        run_audit(small_bundle, spoken, PLAN, damaged, silent)


def test_results_are_part_of_what_is_signed_and_new_weights_have_none(
    audited, calibrated_bundle, tiny_encoder, signing_key, spoken, tmp_path
):
    found, _ = audited
    copy = Path(shutil.copytree(calibrated_bundle.path, tmp_path / "bundle"))
    with pytest.raises(UsageError, match=r"is signed.*give --key"):
        check_key(open_bundle(copy), None)
    write_audit(open_bundle(copy), found, signing_key)
    again = open_bundle(copy, signing_key.public)
    assert again.manifest.info.privacy == found
    again.verify_assets()
    assert "words of 2 (chance 50 %)" in (tmp_path / "bundle.html").read_text()
    assert all(again.table(target) for target in again.manifest.info.targets)
    new = recompile(
        again, tiny_encoder.tensors, tmp_path / "new", generation=2, windows=spoken.windows[:2], reference=None
    )
    assert new.manifest.info.privacy is None
