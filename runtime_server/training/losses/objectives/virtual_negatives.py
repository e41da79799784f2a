"""The `Neighbours` objective with samples of the mixture as additional negatives, as in StreamSplit's paper."""

from __future__ import annotations

from runtime_server.training.losses.objectives.neighbours import Neighbours


class VirtualNegatives(Neighbours):
    """Negatives are the batch and samples of the mixture, which learns from the embeddings of each batch.

    They do harm (docs/training.md, "Virtual negatives"): a sample receives no gradient, so all embeddings turn away
    from it together instead of away from each other.
    """

    virtual_negatives = True
