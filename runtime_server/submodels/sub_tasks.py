"""Which groups of channels each part of the data should use: a linear programme for each layer.

With `H[t, n]` the mean gate of group n over the windows of sub-task t (docs/method.md, section 10):

    maximise  sum of H[t, n] M[t, n],   0 <= M <= 1
    such that sum over n of M[t, n]  = count          for each sub-task: what a sub-model can hold
              least <= sum over t of M[t, n] <= most  for each group: none is forgotten, none serves too many

Its constraints are those of a flow, so its corners are whole numbers, and the simplex method ends in a corner.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from torch import Tensor

from runtime_edge.errors import UsageError


def masks(gates: npt.NDArray[np.float64], count: int, least: int, most: int) -> npt.NDArray[np.bool_]:
    """Which groups serve which sub-task, from mean gates; both (sub-tasks, groups).

    Raises UsageError if no choice meets the limits.
    """
    tasks, groups = gates.shape
    by_task = np.kron(np.eye(tasks), np.ones(groups))
    by_group = np.kron(np.ones(tasks), np.eye(groups))
    found = linprog(
        -gates.ravel() / max(float(gates.max(initial=0)), 1e-12),
        A_ub=np.r_[by_group, -by_group],
        b_ub=np.r_[np.full(groups, float(most)), np.full(groups, -float(least))],
        A_eq=by_task,
        b_eq=np.full(tasks, float(count)),
        bounds=(0, 1),
        method="highs-ds",
    )
    if found.x is None:
        raise UsageError(
            f"{tasks} sub-tasks with {count} of {groups} groups each: no group can serve {least} to {most} of them"
        )
    return np.asarray(found.x.reshape(tasks, groups) > 0.5)


def wanted(gates: Tensor, mask: Tensor) -> Tensor:
    """The gates `P_t = H · M`, normalised, that a sub-task's windows should have, from (..., groups)."""
    product = gates * mask
    return product / product.sum(-1, keepdim=True).clamp(min=1e-12)
