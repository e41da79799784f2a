"""When labels go on and off, in any sequence of windows."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.config import LabelRule
from runtime_edge.device.label_switches import Change, LabelSwitches

HOP = 0.5
GAP = 2.5 * HOP
LABELS = "dog", "rain"

rules = st.builds(
    LabelRule, hold_s=st.sampled_from([0.0, 0.5, 1.0, 3.0, 30.0]), min_s=st.sampled_from([0.0, 0.5, 1.5, 4.0])
)
scores = st.floats(0, 1)
heard = st.dictionaries(st.sampled_from(LABELS), scores)
steps = st.lists(st.tuples(st.sampled_from([1, 1, 1, 1, 2, 3, 9, 100]), heard), max_size=60)
"""How many hops a window ends after the one before, and what is detected in it."""


def windows(played):
    time = 0.0
    for hops, detected in played:
        time += hops * HOP
        yield time, detected


def play(switches, played):
    """Everything that changes, with when; the end included."""
    found = [(time, change) for time, detected in windows(played) for change in switches.window(time, detected)]
    return found + [(float("inf"), change) for change in switches.end()]


def of(label, changes):
    return [(time, change) for time, change in changes if change.label == label]


def switches(rule, rain=None):
    return LabelSwitches(rule, {} if rain is None else {"rain": rain}, GAP)


@given(rules, rules, steps)
def test_a_label_goes_on_and_off_in_turn_and_each_off_tells_of_its_on(usual, rain, played):
    changes = play(switches(usual, rain), played)
    for label in LABELS:
        own = of(label, changes)
        assert [change.event for _, change in own] == ["on", "off"] * (len(own) // 2)
        for (_, on), (_, off) in zip(own[::2], own[1::2], strict=True):
            assert on.since == off.since
            assert on.score <= off.score
            assert on.since <= on.last <= off.last


@given(rules, steps)
def test_a_label_goes_on_only_behind_windows_that_all_have_it_for_its_least_time(rule, played):
    listed = list(windows(played))
    for time, change in of("dog", play(switches(rule), played)):
        if change.event == "on":
            run = [(end, detected) for end, detected in listed if change.since <= end <= time]
            assert all("dog" in detected for _, detected in run)
            assert time - change.since >= rule.min_s
            assert all(later - end <= GAP for (end, _), (later, _) in itertools.pairwise(run))
            assert change.score == max(detected["dog"] for _, detected in run)


@given(rules, steps)
def test_a_label_that_is_on_goes_off_once_it_was_undetected_for_its_hold_and_not_before(rule, played):
    listed = list(windows(played))
    for time, change in of("dog", play(switches(rule), played)):
        if change.event == "off":
            assert not [end for end, detected in listed if change.last < end < time and "dog" in detected]
            assert time - change.last >= min(rule.hold_s, GAP)
            waited = [end for end, _ in listed if change.last < end < time]
            assert all(end - change.last < rule.hold_s for end in waited)


@given(rules, steps)
def test_a_longer_least_time_never_gives_more_events(rule, played):
    longer = LabelRule(rule.hold_s, rule.min_s + 1.0)
    assert len(play(switches(longer), played)) <= len(play(switches(rule), played))


@given(steps)
def test_without_hold_and_least_time_events_are_the_edges(played):
    changes = of("dog", play(switches(LabelRule(0.0, 0.0)), played))
    edges, was, last = [], False, 0.0
    for time, detected in windows(played):
        now = "dog" in detected
        if was and now and time - last > GAP:
            edges += [(time, "off"), (time, "on")]
        elif now != was:
            edges.append((time, "on" if now else "off"))
        was, last = now, time if now else last
    assert [(time, change.event) for time, change in changes if time != float("inf")] == edges


@given(rules, rules, steps)
def test_labels_do_not_touch_each_other(usual, rain, played):
    alone = [(hops, {label: score for label, score in found.items() if label == "rain"}) for hops, found in played]
    assert of("rain", play(switches(usual, rain), played)) == play(switches(usual, rain), alone)


late_windows = st.lists(st.tuples(st.floats(0, 100), heard, st.booleans()), max_size=5)
"""How long before the latest one they ended, what is detected, and whether that says anew what was said before."""


@given(rules, steps, late_windows)
def test_windows_that_come_late_or_are_revised_leave_each_on_with_its_off(rule, played, late):
    one, found = switches(rule), []
    for time, detected in windows(played):
        found += one.window(time, detected)
        for before, other, revised in late:
            found += one.window(time - before, other, revised)
    found += one.end()
    for label in LABELS:
        own = [change.event for change in found if change.label == label]
        assert own == ["on", "off"] * (len(own) // 2)


@given(rules, steps, late_windows)
def test_what_comes_late_and_is_not_detected_changes_nothing(rule, played, late):
    plain, disturbed = switches(rule), switches(rule)
    for time, detected in windows(played):
        assert plain.window(time, detected) == disturbed.window(time, detected)
        assert [disturbed.window(time - before, {}) for before, _, _ in late] == [[]] * len(late)


def test_a_better_answer_may_bring_a_label_or_take_it_back():
    one = switches(LabelRule(hold_s=1.0))
    one.window(0.5, {"dog": 0.6})
    one.window(1.0, {})
    assert one.window(0.5, {"rain": 0.8}, revised=True) == [
        Change("off", "dog", 0.6, 0.5, 0.5),
        Change("on", "rain", 0.8, 0.5, 0.5),
    ]
    one.window(1.5, {"rain": 0.7})
    assert one.window(1.5, {}, revised=True) == [], "it was detected before, too"
    assert one.window(2.5, {}) == [Change("off", "rain", 0.8, 0.5, 1.5)]


def test_what_comes_very_late_is_no_event():
    one = switches(LabelRule(hold_s=1.0))
    one.window(60.0, {})
    assert one.window(0.5, {"dog": 0.9}) == []
    assert one.on == {}


@given(rules, steps, st.floats(0, 1000))
def test_when_no_window_comes_what_is_on_goes_off_after_its_hold(rule, played, silent_s):
    one = switches(rule)
    for time, detected in windows(played):
        one.window(time, detected)
    now, was_on = sum(hops for hops, _ in played) * HOP + silent_s, one.on
    gone = one.passed(now)
    assert {change.label for change in gone} == was_on.keys() - one.on.keys()
    assert all(now - change.last >= rule.hold_s for change in gone)
    one.passed(now + 31.0)
    assert one.on == {}


def test_two_dogs_and_a_long_rain():
    one = LabelSwitches(LabelRule(hold_s=1.0), {"rain": LabelRule(hold_s=30.0, min_s=1.0)}, GAP)
    assert one.window(0.5, {"dog": 0.9, "rain": 0.7}) == [Change("on", "dog", 0.9, 0.5, 0.5)]
    assert one.window(1.0, {"rain": 0.8}) == []
    assert one.window(1.5, {"dog": 0.6, "rain": 0.9}) == [Change("on", "rain", 0.9, 0.5, 1.5)]
    assert list(one.on) == ["dog", "rain"]
    assert one.window(2.0, {}) == []
    assert one.window(2.5, {}) == [Change("off", "dog", 0.9, 0.5, 1.5)]
    assert one.passed(31.4) == []
    assert one.passed(31.5) == [Change("off", "rain", 0.9, 0.5, 1.5)]


@pytest.mark.parametrize("hold_s", [0.0, 2.0])
def test_one_window_that_did_not_come_ends_nothing(hold_s):
    one = switches(LabelRule(hold_s))
    one.window(0.5, {"dog": 0.9})
    assert one.window(1.5, {"dog": 0.9}) == []
    assert one.on == {"dog": 0.5}
