"""Contrastive objectives for two views of a window: the term `L_task` of the loss (docs/method.md, sections 5 and 11).

    objective = OBJECTIVES["moco"](segments, width=128, temperature=0.1, seed=0)
    loss = objective(Views(anchors, positives))
    objective.after_step()

Each is a module with the same few methods, so nothing else needs to know which one it is.
"""

from __future__ import annotations

from runtime_server.training.losses.objectives.barlow_twins import BarlowTwins
from runtime_server.training.losses.objectives.interface import Objective, Views
from runtime_server.training.losses.objectives.moco import MoCo
from runtime_server.training.losses.objectives.neighbours import Neighbours
from runtime_server.training.losses.objectives.simclr import SimCLR
from runtime_server.training.losses.objectives.simsiam import SimSiam
from runtime_server.training.losses.objectives.virtual_negatives import VirtualNegatives

DEFAULT = "neighbours"
OBJECTIVES: dict[str, type[Objective]] = {
    DEFAULT: Neighbours,
    "virtual-negatives": VirtualNegatives,
    "simclr": SimCLR,
    "moco": MoCo,
    "simsiam": SimSiam,
    "barlow-twins": BarlowTwins,
}

__all__ = ["DEFAULT", "OBJECTIVES", "Objective", "Views"]
