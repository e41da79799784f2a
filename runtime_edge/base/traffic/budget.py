"""A budget of bytes a day, which accrues evenly over the day; the unused part carries over for a week.

    budget = Budget.begun(20e6)                 # a day's worth
    budget = budget.after(3600.0).spent(5e6)    # an hour later, less what has passed
    budget.wait_s(1e6)                          # seconds until this much may pass; infinite if it never may

Nothing here looks at a clock: a budget is told how much time has passed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

DAY_S = 86_400.0
DAYS = 7
"""How many days' worth can accumulate."""

_HEADERS, _MESSAGE_BYTES = 1.07, 200


def on_the_way(count: int) -> int:
    """Bytes on the network for a message of `count` bytes: packets, their acknowledgements, and the request for it."""
    return round(_HEADERS * count) + _MESSAGE_BYTES


@dataclass(frozen=True)
class Budget:
    """The bytes that may pass now. More may have passed than was left: this debt comes off the next days, at most a
    week's worth.
    """

    per_day: float
    """Bytes a day; above 0."""
    left: float
    """Bytes left; a debt if below 0."""

    @classmethod
    def begun(cls, per_day: float) -> Budget:
        """A new budget, with a day's worth."""
        return cls(per_day, per_day)

    @classmethod
    def kept(cls, per_day: float, left: float) -> Budget:
        """A budget with what was left of an earlier one, which may have been of another size."""
        return cls(per_day, min(max(left, -DAYS * per_day), DAYS * per_day))

    @property
    def most(self) -> float:
        """Bytes it holds at most: anything larger never fits."""
        return DAYS * self.per_day

    def after(self, seconds: float) -> Budget:
        """The budget `seconds` later; a negative time adds nothing."""
        return replace(self, left=min(self.most, self.left + self.per_day * max(0.0, seconds) / DAY_S))

    def spent(self, count: float) -> Budget:
        """The budget after `count` bytes have passed."""
        return replace(self, left=max(-self.most, self.left - count))

    def wait_s(self, count: float) -> float:
        """Seconds until `count` bytes are left; 0 if they are, infinite if they never will be."""
        if count > self.most:
            return math.inf
        return max(0.0, count - self.left) / self.per_day * DAY_S
