"""The state machine of releases: who takes a generation, when all do, and when nobody does any more."""

import numpy as np
import pytest

from runtime_edge.errors import FormatError, UsageError
from runtime_edge.formats.records.release import canary_place
from runtime_server.releases.rollout import PRESENT_S, Rollout, RolloutConfig, Wanted

CONFIG = RolloutConfig(canary_share=0.25, canary_from=4, healthy_s=60, hold_s=600)


def digest(number):
    return f"sha256:{number:064x}"


@pytest.fixture
def now():
    return [1000.0]


@pytest.fixture
def make(tmp_path, now):
    """A rollout on the same file each time, as after a restart."""
    return lambda known=(1,), config=CONFIG: begun(Rollout(tmp_path / "rollout.json", config, lambda: now[0]), known)


def begun(rollout, known):
    rollout.begin({number: digest(number) for number in known})
    return rollout


def says(rollout, device, generation, proven=True, failed=()):
    failures = [{"manifest": digest(n), "event": "rolled_back", "reason": "died"} for n in failed]
    rollout.observe(device, {"bundle": digest(generation), "on_trial": not proven, "update_failures": failures})


def fleet(rollout, count, generation=1):
    names = [f"pi-{number}" for number in range(count)]
    for name in names:
        says(rollout, name, generation)
    return names


def canaries(rollout, names):
    wanted = rollout.wanted
    return [name for name in names if canary_place(name, wanted.trial) < wanted.share]


def status(rollout, generation):
    return next(row for row in rollout.listing() if row["generation"] == generation)["status"]


def test_the_first_generation_is_stable_at_once(make):
    assert make().wanted == Wanted(stable=1, trial=None, share=1.0, highest=1)


def test_a_small_fleet_takes_a_generation_at_once(make):
    rollout = make()
    fleet(rollout, 3)
    rollout.offer(2, digest(2))
    assert rollout.wanted == Wanted(stable=1, trial=2, share=1.0, highest=2)
    assert rollout.held == "", "the next one need not wait"
    rollout.offer(3, digest(3))
    assert (rollout.wanted.stable, rollout.wanted.trial) == (1, 3)
    assert status(rollout, 2) == "superseded"


def test_a_larger_one_sends_canaries_first_and_the_next_generation_waits(make):
    rollout = make()
    names = fleet(rollout, 200)
    rollout.offer(2, digest(2))
    share = len(canaries(rollout, names)) / len(names)
    assert share == pytest.approx(0.25, abs=0.08)
    assert rollout.held == "generation 2 is with its canaries"


def test_canaries_are_others_each_time_and_the_same_for_everybody():
    names = [f"pi-{number}" for number in range(2000)]
    places = np.array([[canary_place(name, generation) for name in names] for generation in range(1, 6)])
    assert np.all((places >= 0) & (places < 1))
    assert np.abs(np.quantile(places, [0.1, 0.5, 0.9], axis=1).T - [0.1, 0.5, 0.9]).max() < 0.04
    assert np.abs(np.corrcoef(places) - np.eye(5)).max() < 0.1
    assert canary_place("pi-1", 7) == canary_place("pi-1", 7)


def test_the_canary_share_reaches_at_least_one_device_that_is_there(make):
    for number in range(2, 12):
        rollout = make(range(1, number), RolloutConfig(canary_share=0.01, canary_from=2))
        names = [f"device-{number}-{i}" for i in range(3)]
        for name in names:
            says(rollout, name, 1)
        rollout.offer(number, digest(number))
        assert len(canaries(rollout, names)) >= 1
        rollout.promote(None)


def test_canaries_that_have_gone_are_replaced(make, now):
    rollout = make()
    rollout.offer(2, digest(2), {})
    names = fleet(rollout, 8)
    rollout = make((1, 2), CONFIG)
    for name in names:
        says(rollout, name, 1)
    rollout.offer(3, digest(3))
    first = canaries(rollout, names)
    others = [name for name in names if name not in first]
    now[0] += PRESENT_S + 1
    for name in others:
        says(rollout, name, 1)
    assert "no canary is there" in rollout.decide()
    assert len(canaries(rollout, others)) == 1
    assert rollout.decide() == ""


def test_it_is_promoted_when_time_has_passed_and_enough_canaries_are_well(make, now):
    rollout = make()
    names = fleet(rollout, 40)
    rollout.offer(2, digest(2))
    first = canaries(rollout, names)
    for name in first:
        says(rollout, name, 2, proven=False)
    now[0] += 59
    fleet(rollout, 40)
    for name in first:
        says(rollout, name, 2, proven=False)
    now[0] += 2
    assert rollout.decide() == "", "they run it, but have not proven it"
    half = first[: len(first) // 2]
    for name in half[:-1]:
        says(rollout, name, 2)
    assert rollout.decide() == ""
    for name in first:
        says(rollout, name, 2)
    assert "generation 2 promoted" in rollout.decide()
    assert rollout.wanted == Wanted(stable=2, trial=None, share=1.0, highest=2)
    assert status(rollout, 1) == "superseded"


def test_it_is_not_promoted_before_its_time(make, now):
    rollout = make()
    fleet(rollout, 2)
    rollout.offer(2, digest(2))
    fleet(rollout, 2, generation=2)
    now[0] += 59
    fleet(rollout, 2, generation=2)
    assert rollout.decide() == ""
    now[0] += 1
    assert "promoted" in rollout.decide()


def test_one_failure_is_enough_in_a_small_fleet(make):
    rollout = make()
    fleet(rollout, 3)
    rollout.offer(2, digest(2))
    says(rollout, "pi-1", 1, failed=[2])
    assert rollout.decide() == "generation 2 rolled back: pi-1: rolled_back: died"
    assert rollout.wanted == Wanted(stable=1, trial=None, share=1.0, highest=2)
    assert status(rollout, 2) == "rolled back"
    assert rollout.decide() == ""


def test_in_a_large_one_it_takes_a_share_of_the_canaries(make):
    rollout = make()
    names = fleet(rollout, 200)
    rollout.offer(2, digest(2))
    first = canaries(rollout, names)
    enough = int(np.ceil(0.1 * len(first)))
    assert enough > 1
    for name in first[: enough - 1]:
        says(rollout, name, 1, failed=[2])
    assert rollout.decide() == ""
    says(rollout, first[enough - 1], 1, failed=[2])
    assert f"and {enough - 1} more" in rollout.decide()


def test_a_device_that_runs_it_after_all_is_no_failure(make):
    rollout = make()
    names = fleet(rollout, 200)
    rollout.offer(2, digest(2))
    says(rollout, names[0], 1, failed=[2])
    says(rollout, names[0], 2)
    assert rollout.listing()[0]["failures"] == {}


def test_failures_of_other_bundles_do_not_count(make):
    rollout = make()
    fleet(rollout, 2)
    rollout.offer(2, digest(2))
    rollout.observe("pi-1", {"bundle": digest(1), "update_failures": [{"manifest": "sha256:other"}, 7, None]})
    rollout.observe("pi-1", {"bundle": 7, "update_failures": "none"})
    rollout.observe("pi-1", {})
    assert rollout.decide() == ""


def test_after_a_rollback_nothing_comes_by_itself_for_longer_and_longer(make, now):
    rollout = make()
    for number, hold_s in ((2, 600), (3, 1200), (4, 2400)):
        rollout.offer(number, digest(number))
        says(rollout, "pi-1", 1, failed=[number])
        rollout.decide()
        assert "after a rollback" in rollout.held
        now[0] += hold_s - 1
        assert rollout.held
        now[0] += 2
        assert rollout.held == ""
    assert rollout.highest == 4, "the next one is 5"
    rollout.offer(5, digest(5))
    rollout.promote(None)
    rollout.offer(6, digest(6))
    rollout.roll_back(None)
    now[0] += 601
    assert rollout.held == "", "a promotion starts the count again"


def test_a_rollback_survives_a_restart(make):
    rollout = make()
    rollout.offer(2, digest(2))
    says(rollout, "pi-1", 1, failed=[2])
    rollout.decide()
    again = make((1, 2))
    assert again.wanted == Wanted(stable=1, trial=None, share=1.0, highest=2)
    assert again.held
    assert again.base == 1


def test_a_trial_goes_on_after_a_restart(make):
    rollout = make()
    fleet(rollout, 50)
    rollout.offer(2, digest(2))
    assert make((1, 2)).wanted == rollout.wanted


def test_a_generation_that_was_compiled_and_never_offered_is_named(make, tmp_path):
    make()
    assert Rollout(tmp_path / "rollout.json", CONFIG).begin({1: digest(1), 2: digest(2)}) == 2
    assert Rollout(tmp_path / "rollout.json", CONFIG).begin({1: digest(1)}) is None


def test_generations_that_are_gone_from_the_disk_are_not_wanted(make, tmp_path):
    rollout = make()
    rollout.offer(2, digest(2))
    rollout.promote(None)
    rollout.offer(3, digest(3))
    back = make((1,))
    assert back.wanted == Wanted(stable=1, trial=None, share=1.0, highest=3)
    other = Rollout(tmp_path / "rollout.json", CONFIG)
    other.begin({1: "sha256:another server's"})
    assert other.wanted.stable == 1


def test_by_hand(make):
    rollout = make((1, 2, 3))  # 3 is stable
    with pytest.raises(UsageError, match="nothing to go back to"):
        rollout.roll_back(None)
    with pytest.raises(UsageError, match="no generation is on trial"):
        rollout.promote(None)
    with pytest.raises(UsageError, match="generation 9 has never been released"):
        rollout.promote(9)
    rollout.offer(4, digest(4))
    assert rollout.promote(None) == 4
    assert rollout.roll_back(None) == 3
    assert rollout.wanted == Wanted(stable=3, trial=None, share=1.0, highest=4)
    assert status(rollout, 4) == "rolled back"
    assert rollout.promote(4) == 4
    with pytest.raises(UsageError, match="already runs"):
        rollout.roll_back(4)


def test_pinned_means_that_nothing_comes_until_it_is_unpinned(make):
    rollout = make()
    rollout.offer(2, digest(2))
    assert rollout.pin(1) == 1
    assert rollout.wanted == Wanted(stable=1, trial=None, share=1.0, highest=2)
    assert rollout.held == "generation 1 is pinned"
    assert make((1, 2)).held == "generation 1 is pinned"
    assert rollout.listing()[-1]["pinned"]
    rollout.unpin()
    assert rollout.held == ""
    assert not any("pinned" in (row["status"], row["reason"]) or row["pinned"] for row in rollout.listing())
    assert rollout.pin(None) == 1


def test_a_pin_goes_along_with_a_rollback(make, now):
    rollout = make()
    rollout.offer(2, digest(2))
    rollout.promote(None)
    rollout.pin(None)
    assert rollout.roll_back(None) == 1
    now[0] += 1e6
    assert rollout.held == "generation 1 is pinned"
    assert make((1, 2)).held == "generation 1 is pinned"
    rollout.unpin()
    assert rollout.held == ""


def test_what_is_listed(make, now):
    rollout = make()
    fleet(rollout, 3)
    rollout.offer(2, digest(2), {"held_out_before": 2.0, "held_out_after": 1.5, "full_bytes": 9, "patch_bytes": 3})
    says(rollout, "pi-0", 2, proven=False)
    newest, first = rollout.listing()
    assert (newest["generation"], newest["status"], newest["devices"], newest["devices_proven"]) == (2, "trial", 1, 0)
    assert (newest["held_out_before"], newest["held_out_after"], newest["patch_bytes"]) == (2.0, 1.5, 3)
    assert (first["status"], first["devices"], first["devices_proven"]) == ("stable", 2, 2)
    now[0] += PRESENT_S + 1
    assert [row["devices"] for row in rollout.listing()] == [0, 0]


def test_the_file_does_not_grow_for_ever_and_never_loses_what_runs(make, tmp_path):
    rollout = make()
    for number in range(2, 200):
        rollout.offer(number, digest(number))
    assert rollout.wanted == Wanted(stable=1, trial=199, share=1.0, highest=199)
    assert (tmp_path / "rollout.json").stat().st_size < 64 << 10
    assert make((1, 199)).wanted == rollout.wanted


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "rollout.json"
    path.write_text('{"entries": [{"generation": "two"}]}')
    with pytest.raises(FormatError, match=r"rollout\.json: .*generation.*; remove the file"):
        Rollout(path, CONFIG)


def test_a_reason_is_text_that_a_terminal_may_show(make):
    rollout = make(known=(1,))
    rollout.offer(2, digest(2))
    failure = {"manifest": digest(2), "event": "\x1b[2J", "reason": "\n\u202e" + "x" * 60_000}
    rollout.observe("pi-1", {"bundle": digest(1), "update_failures": [failure]})
    said = rollout.decide()
    assert said.isprintable()
    assert "?[2J: ??xxx" in said
    assert len(said) < 1000


def test_a_device_that_was_not_to_run_a_generation_has_no_say_in_it(make):
    rollout = make(known=(1,))
    names = fleet(rollout, 20)
    rollout.offer(2, digest(2))
    others = [name for name in names if name not in canaries(rollout, names)]
    assert others
    for name in others:
        says(rollout, name, 1, failed=(2,))
    assert rollout.decide() == ""
    says(rollout, canaries(rollout, names)[0], 1, failed=(2,))
    assert "rolled back" in rollout.decide()
