"""What a device remembers of its bundles over crashes, and the log of it."""

import json
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.errors import BundleError
from runtime_edge.updates import trial
from runtime_edge.updates.trial import FAILED_STARTS, PROVEN_WINDOWS, Trial, Trials, update_log


def bundle(number):
    info = SimpleNamespace(generation=number)
    return SimpleNamespace(digest="sha256:" + f"{number:064x}", manifest=SimpleNamespace(info=info))


ONE, TWO, THREE = bundle(1), bundle(2), bundle(3)


@pytest.fixture
def state(tmp_path):
    return tmp_path


@pytest.fixture
def trials(state):
    return Trials(state)


def run(trials, chosen):
    """A start that takes a bundle into use; nothing says how it ends."""
    trials.begin(chosen)
    trials.adopt(chosen)


def proven(trials, chosen):
    run(trials, chosen)
    trials.prove(chosen)


def restart(state):
    """A new process: what it goes back from, and what it runs."""
    trials = Trials(state)
    return [(item.generation, item.event) for item in trials.recover()], trials.record().current


def test_a_fresh_device_knows_nothing(trials, state):
    assert trials.record() == trial.BundleRecord()
    assert restart(state) == ([], None)
    assert update_log(state) == ([], 0)


def test_two_starts_that_ended_in_no_order_send_it_back_to_what_was_proven(trials, state):
    proven(trials, ONE)
    for _ in range(FAILED_STARTS):
        assert restart(state)[0] == []
        run(trials, TWO)
    assert restart(state) == ([(2, "rolled_back")], ONE.digest)
    refusal = Trials(state).refusal(TWO.digest)
    assert refusal.generation == 2
    assert "died 2 times" in refusal.reason
    assert restart(state) == ([], ONE.digest), "told once"


def test_a_stop_in_order_or_a_proof_strikes_the_starts_out(trials, state):
    proven(trials, ONE)
    for _ in range(5):
        run(trials, TWO)
        trials.ended(TWO)
    assert restart(state) == ([], TWO.digest)
    run(trials, TWO)
    trials.prove(TWO)
    run(trials, TWO)
    run(trials, TWO)
    assert restart(state) == ([], TWO.digest), "proven: a later crash is not the update's"
    assert Trials(state).record().before == ONE.digest


def test_one_that_dies_while_it_is_loaded_is_refused_and_the_one_that_ran_beside_it_is_not(trials, state):
    """Nothing has been proven yet, and both processes died with both bundles in them."""
    for _ in range(FAILED_STARTS):
        run(trials, ONE)
        trials.begin(TWO)
    assert restart(state) == ([(2, "rolled_back")], ONE.digest)
    assert trials.refusal(ONE.digest) is None


def test_the_only_bundle_is_never_refused(trials, state):
    for _ in range(5):
        run(trials, ONE)
    trials.refuse(ONE, "self-test")
    assert restart(state) == ([], ONE.digest)
    assert trials.refusal(ONE.digest) is None


def test_a_proven_bundle_is_never_refused(trials, state):
    proven(trials, ONE)
    run(trials, TWO)
    trials.refuse(ONE, "the runtime was upgraded")
    assert trials.refusal(ONE.digest) is None
    assert trials.record().current == TWO.digest


def test_what_does_not_work_is_refused_at_once_until_a_person_wants_it(trials, state):
    proven(trials, ONE)
    trials.begin(TWO)
    trials.refuse(TWO, "self-test embedding is off")
    assert Trials(state).refusal(TWO.digest).reason == "self-test embedding is off"
    assert restart(state) == ([], ONE.digest)
    trials.forgive(TWO.digest)
    assert trials.refusal(TWO.digest) is None


def test_only_the_last_refusals_are_kept(trials):
    proven(trials, ONE)
    for number in range(2, 40):
        trials.refuse(bundle(number), "x" * 5000)
    kept = trials.record().refused
    assert [item.generation for item in kept] == list(range(24, 40))
    assert {len(item.reason) for item in kept} == {500}


def test_what_is_worth_its_disk(trials):
    proven(trials, ONE)
    proven(trials, TWO)
    run(trials, THREE)
    assert trials.record().wanted == {ONE.digest, TWO.digest, THREE.digest}


@given(st.binary(max_size=200))
def test_a_damaged_record_is_named_and_does_not_stop_a_device(tmp_path_factory, data):
    state = tmp_path_factory.mktemp("state")
    (state / "bundles.json").write_bytes(data)
    trials = Trials(state)
    try:
        assert trials.record() == trial.BundleRecord()  # `{}` is none that is damaged
    except BundleError as exc:
        assert re.search(r"bundles\.json: .*; remove the file", str(exc))  # noqa: PT017
    assert trials.recover() == []
    run(trials, ONE)
    assert trials.record().current == ONE.digest


def test_the_log_keeps_the_newest_lines_within_its_bound(trials, state, monkeypatch):
    for number in range(3000):
        trials.note("generation", generation=number, digest="sha256:" + "0" * 64)
    log = state / "updates.jsonl"
    assert log.stat().st_size <= 64 << 10
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["generation"] for line in lines] == list(range(lines[0]["generation"], 3000))
    assert all(line.pop("crc32") for line in lines)
    assert update_log(state, 2) == (lines[-2:], 0)
    assert lines[-1].keys() == {"time", "event", "generation", "digest"}

    with log.open("ab") as file:
        file.write(b'{"time": 1, "ev')  # the power went
    assert update_log(state, 1) == (lines[-1:], 1)


def test_a_full_disk_costs_the_log_a_line_and_nothing_else(trials, state):
    (state / "updates.jsonl").mkdir()
    trials.note("generation", generation=1)
    (state / "updates.jsonl").rmdir()
    trials.note("generation", generation=2)
    assert [event["generation"] for event in update_log(state, 5).events] == [2]


def test_a_trial_is_passed_after_enough_windows_and_enough_time():
    now = [100.0]
    short = Trial(ONE, 0.0)
    assert [short.window_ran() for _ in range(PROVEN_WINDOWS)] == [False] * (PROVEN_WINDOWS - 1) + [True]
    long = Trial(ONE, 60.0, lambda: now[0])
    assert not any(long.window_ran() for _ in range(3 * PROVEN_WINDOWS))
    now[0] += 60.0
    assert long.window_ran()
