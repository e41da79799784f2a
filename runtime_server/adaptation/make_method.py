"""Makes the method that adapts one recipient, by its name."""

from __future__ import annotations

import torch

from runtime_server.adaptation.adaptation_judge import LabelledWindows
from runtime_server.adaptation.classifier import Classifier
from runtime_server.adaptation.methods import ALONE, Blended, Cema, Eata, Joint, Method
from runtime_server.adaptation.methods.eata import importance
from runtime_server.adaptation.recipient import Recipient
from runtime_server.adaptation.student import MakeMethod
from runtime_server.adaptation.trained_encoders import teacher
from runtime_server.suffix.generations import Generation
from runtime_server.suffix.larger_encoder import LargerEncoder

_MOST_REMEMBERED = 64
"""Labelled windows that tell EATA which parameters matter."""
TAUGHT = ("joint", "cema")
"""Methods that need a larger encoder."""


def method_maker(name: str, larger: LargerEncoder | None, seed: int, blended: bool = False) -> MakeMethod:
    """Makes methods of this name. Those in `TAUGHT` need `larger`, which teaches; its recordings are clean sound.

    `blended`: batch norms follow the statistics of what is heard as well.
    """

    def make(
        generation: Generation, recipient: Recipient, classifier: Classifier, labelled: LabelledWindows | None
    ) -> Method:
        if name in TAUGHT:
            assert larger is not None
            assert larger.graph is not None
            assert generation.larger is not None
            taught_by = teacher(larger.graph, generation.larger, recipient.head)
            if name == "cema":
                return Cema(classifier, taught_by, seed)
            return Joint(classifier, taught_by, larger.windows, seed)
        if name == "eata" and labelled is not None:
            known = torch.from_numpy(labelled.windows)[:: -(-len(labelled.windows) // _MOST_REMEMBERED)]
            return Eata(classifier, matters=importance(classifier, known))
        return ALONE[name](classifier)

    def make_blended(
        generation: Generation, recipient: Recipient, classifier: Classifier, labelled: LabelledWindows | None
    ) -> Method:
        return Blended(make(generation, recipient, classifier, labelled), classifier)

    return make_blended if blended else make
