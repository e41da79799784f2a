"""Paces releases: their bytes for each device, against a budget of bytes a day."""

from __future__ import annotations

import math

from runtime_edge.base.text import moment, size
from runtime_edge.base.traffic.budget import DAYS, Budget, on_the_way
from runtime_server.releases.rollout import Rollout


class UpdatePace:
    """A budget as an operator says (`--update-mb-per-day`), or as the devices say of theirs.

    Each release that came has taken its patches out of it. Keeps nothing: a rollout knows its releases over restarts.
    """

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout

    @property
    def per_day(self) -> float:
        """Bytes a day; infinite without budgets.

        Of the devices' budgets what all but the share that may fail can spend: the smallest, where they are few. So one
        device cannot slow down a fleet.
        """
        config = self._rollout.config
        if config.update_mb_per_day is not None:
            return config.update_mb_per_day * 1e6
        budgets = sorted(report.per_day for report in self._rollout.last_reports())
        return budgets[int(config.failure_share * len(budgets))] if budgets else math.inf

    def wait_s(self, count: int) -> float:
        """Seconds until a release that takes so many bytes of each device may come; infinite: never."""
        per_day, spent = self.per_day, self._rollout.spent()
        if math.isinf(per_day) or not spent:
            return 0.0
        budget, (at, _) = Budget.begun(per_day), spent[0]
        for released_at, taken in spent:
            budget, at = budget.after(released_at - at).spent(on_the_way(taken) if taken else 0), released_at
        return budget.after(self._rollout.now() - at).wait_s(on_the_way(count))

    def objection(self, number: int, count: int) -> tuple[str, float]:
        """Why a generation that takes so much may not come now, and when it may; nothing and 0 where it may."""
        wait_s, budget = self.wait_s(count), f"the budget of {self.per_day / 1e6:g} MB a day for updates"
        if not wait_s:
            return "", 0.0
        until = self._rollout.now() + wait_s
        if math.isinf(wait_s):
            return f"generation {number} is not offered: {size(count)} are more than {DAYS} days of {budget}", until
        return f"generation {number} waits until {moment(until)}: {size(count)} of {budget}", until

    @property
    def held(self) -> str:
        """Why another release such as the last one may not come now; empty when it may."""
        taken = [count for _, count in self._rollout.spent() if count]
        wait_s = self.wait_s(taken[-1]) if taken else 0.0
        if not wait_s:
            return ""
        budget = f"the budget of {self.per_day / 1e6:g} MB a day for updates"
        if math.isinf(wait_s):
            return f"{size(taken[-1])}, as the last release took, are more than {DAYS} days of {budget}"
        return f"the next release waits until {moment(self._rollout.now() + wait_s)} for {budget}"
