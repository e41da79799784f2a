"""The same with samples of the mixture as additional negatives, as in StreamSplit's paper."""

from __future__ import annotations

from runtime_server.training.losses.objectives.neighbours import Neighbours


class VirtualNegatives(Neighbours):
    """Negatives are the batch and samples of the mixture, which learns what each batch is embedded as.

    They harm (docs/training.md, "Virtual negatives"): a sample takes no gradient, so all embeddings turn away from it
    together instead of apart from each other.
    """

    virtual_negatives = True
