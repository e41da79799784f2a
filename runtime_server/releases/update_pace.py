"""Paces releases: their bytes for each device must fit a daily budget."""

from __future__ import annotations

import math

from runtime_edge.base.text import moment, size
from runtime_edge.base.traffic.budget import DAYS, Budget, on_the_way
from runtime_server.releases.rollout import Rollout


class UpdatePace:
    """The operator's budget (`--update-mb-per-day`), or else that of the devices.

    Each earlier release has used up its patches' size. Keeps no state: the rollout remembers its releases across
    restarts.
    """

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout

    @property
    def per_day(self) -> float:
        """Bytes a day; infinite without budgets.

        Among the devices' budgets, it is what all but the share of devices that may fail can spend (with few devices,
        the smallest). So one device cannot slow down a fleet.
        """
        config = self._rollout.config
        if config.update_mb_per_day is not None:
            return config.update_mb_per_day * 1e6
        budgets = sorted(report.per_day for report in self._rollout.last_reports().values())
        return budgets[int(config.failure_share * len(budgets))] if budgets else math.inf

    def wait_s(self, count: int) -> float:
        """Seconds until a release of this many bytes for each device may come; infinite: never."""
        per_day, spent = self.per_day, self._rollout.spent()
        if math.isinf(per_day) or not spent:
            return 0.0
        budget, (at, _) = Budget.begun(per_day), spent[0]
        for released_at, taken in spent:
            budget, at = budget.after(released_at - at).spent(on_the_way(taken) if taken else 0), released_at
        return budget.after(self._rollout.now() - at).wait_s(on_the_way(count))

    def objection(self, number: int, count: int) -> tuple[str, float]:
        """Why a generation of this size may not come now, and when it may; empty and 0 if it may."""
        wait_s, budget = self.wait_s(count), f"the budget of {self.per_day / 1e6:g} MB a day for updates"
        if not wait_s:
            return "", 0.0
        until = self._rollout.now() + wait_s
        if math.isinf(wait_s):
            return f"generation {number} is not offered: {size(count)} are more than {DAYS} days of {budget}", until
        return f"generation {number} waits until {moment(until)}: {size(count)} of {budget}", until

    @property
    def held(self) -> str:
        """Why another release of the last one's size may not come now; empty if it may."""
        taken = [count for _, count in self._rollout.spent() if count]
        wait_s = self.wait_s(taken[-1]) if taken else 0.0
        if not wait_s:
            return ""
        budget = f"the budget of {self.per_day / 1e6:g} MB a day for updates"
        if math.isinf(wait_s):
            return f"{size(taken[-1])}, as the last release took, are more than {DAYS} days of {budget}"
        return f"the next release waits until {moment(self._rollout.now() + wait_s)} for {budget}"
