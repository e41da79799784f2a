"""Which labels are on: a label goes on after being detected for long enough, and off after not being detected as long.

    switches = LabelSwitches(LabelRule(hold_s=2.0), {"rain": LabelRule(hold_s=30.0, min_s=5.0)}, gap_s=1.25)
    switches.window(12.5, {"rain": 0.93})         # the labels that this window changed
    switches.passed(50.0)                         # those that changed because no window came

Times are capture times of the ends of windows, in seconds. Nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from runtime_edge.config import LabelRule


@dataclass(frozen=True)
class Change:
    """A label that has gone on or off."""

    event: Literal["on", "off"]
    label: str
    score: float
    """The highest score since `since`."""
    since: float
    """When it was first detected."""
    last: float
    """When it was last detected."""


@dataclass
class _Heard:
    """A label that is on, or that is detected and may go on."""

    since: float
    last: float
    best: float
    is_on: bool = False


class LabelSwitches:
    """Switches labels on and off, each on its own.

    Args:
        usual: when a label goes on and off.
        rules: the same for those with rules of their own.
        gap_s: how long windows may be missing before a label counts as undetected.
    """

    def __init__(self, usual: LabelRule, rules: Mapping[str, LabelRule], gap_s: float) -> None:
        self._usual, self._rules, self._gap_s = usual, rules, gap_s
        self._heard: dict[str, _Heard] = {}
        self._latest = float("-inf")

    def rule(self, label: str) -> LabelRule:
        """The rule of a label."""
        return self._rules.get(label, self._usual)

    @property
    def on(self) -> dict[str, float]:
        """The labels that are on, each with the time when it was first detected, in that order."""
        found = [(heard.since, label) for label, heard in self._heard.items() if heard.is_on]
        return {label: since for since, label in sorted(found)}

    def window(self, time: float, detected: Mapping[str, float], revised: bool = False) -> list[Change]:
        """Take a window that ended at `time`, with the labels detected in it and their scores.

        A window may come after later ones, or with a new answer (`revised`) in place of an earlier one: the new labels
        count, and those that only the earlier answer had do not count any more.
        """
        if time <= self._latest:
            return self._late(time, detected, revised)
        self._latest = time
        changes = self._end_those(lambda label, heard: self._is_over(label, heard, time, label in detected))
        for label, score in detected.items():
            heard = self._heard.setdefault(label, _Heard(time, time, score))
            heard.last, heard.best = time, max(heard.best, score)
        return [*changes, *self._begin()]

    def _late(self, time: float, detected: Mapping[str, float], revised: bool) -> list[Change]:
        changes = self._end_those(
            lambda label, heard: revised and label not in detected and heard.since == heard.last == time
        )
        for label, score in detected.items():
            heard = self._heard.get(label)
            if heard is not None:
                heard.last, heard.best = max(heard.last, time), max(heard.best, score)
            elif self._latest - time <= self._gap_s:
                self._heard[label] = _Heard(time, time, score)
        return [*changes, *self._begin()]

    def passed(self, time: float) -> list[Change]:
        """Note that no window has come until `time`."""
        return self._end_those(lambda label, heard: self._is_over(label, heard, time, detected=False))

    def end(self) -> list[Change]:
        """Note that no more windows come: labels that are on go off."""
        return self._end_those(lambda _label, _heard: True)

    def _is_over(self, label: str, heard: _Heard, time: float, detected: bool) -> bool:
        hold_s = self.rule(label).hold_s if heard.is_on else 0.0
        undetected_s = time - heard.last
        return undetected_s > max(hold_s, self._gap_s) if detected else undetected_s >= hold_s

    def _begin(self) -> Iterator[Change]:
        for label, heard in self._heard.items():
            if not heard.is_on and heard.last - heard.since >= self.rule(label).min_s:
                heard.is_on = True
                yield Change("on", label, heard.best, heard.since, heard.last)

    def _end_those(self, over: Callable[[str, _Heard], bool]) -> list[Change]:
        ended = [(label, heard) for label, heard in self._heard.items() if over(label, heard)]
        for label, _ in ended:
            del self._heard[label]
        return [Change("off", label, heard.best, heard.since, heard.last) for label, heard in ended if heard.is_on]
