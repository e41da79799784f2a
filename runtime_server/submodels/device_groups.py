"""Which devices share a sub-model: those that hear alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DeviceGroups:
    """The middles of groups of devices."""

    middles: Floats
    """(groups, components) mean responsibilities."""

    def nearest(self, heard: Floats) -> npt.NDArray[np.int64]:
        """The group of each device (devices,), from its mean responsibilities (devices, components)."""
        return np.asarray(np.square(heard[:, None] - self.middles).sum(2).argmin(1))


def group_devices(heard: Floats, count: int) -> DeviceGroups:
    """At most `count` groups of devices by their mean responsibilities (devices, components), by Ward's method."""
    if len(heard) == 1 or count == 1:
        return DeviceGroups(heard.mean(0, keepdims=True))
    owners = fcluster(linkage(heard, "ward"), count, "maxclust")
    return DeviceGroups(np.stack([heard[owners == owner].mean(0) for owner in np.unique(owners)]))
