"""Makes the method that adapts one recipient, by its name."""

from __future__ import annotations

import torch
from torch import Tensor

from runtime_server.adaptation.adaptation_judge import LabelledWindows
from runtime_server.adaptation.classifier import Classifier
from runtime_server.adaptation.methods import ALONE, Blended, Cema, Eata, Joint, Method
from runtime_server.adaptation.methods.eata import importance
from runtime_server.adaptation.recipient import Recipient
from runtime_server.adaptation.student import MakeMethod
from runtime_server.adaptation.trained_encoders import teacher
from runtime_server.suffix.generations import Generation, copy_module
from runtime_server.suffix.larger_encoder import LargerEncoder, in_batches
from streamsplit_compile.encoder.segment import run_segments

_MOST_REMEMBERED = 64
"""Labelled windows that tell EATA which parameters matter."""
_MOST_CLEAN = 512
"""Windows of clean sound behind a cut, where they take more memory than as audio."""
TAUGHT = ("joint", "cema")
"""Methods that need a larger encoder."""


def method_maker(name: str, larger: LargerEncoder | None, seed: int, blended: bool = False) -> MakeMethod:
    """Makes methods of this name. Those in `TAUGHT` need `larger`, which teaches; its recordings are clean sound.

    It cannot hear a device that sends no audio: behind a cut the encoder as it was compiled teaches instead.
    `blended`: batch norms follow the statistics of what is heard as well.
    """

    def make(
        generation: Generation,
        recipient: Recipient,
        classifier: Classifier,
        labelled: LabelledWindows | None,
        start: int,
    ) -> Method:
        if name in TAUGHT:
            assert larger is not None
            assert larger.graph is not None
            assert generation.larger is not None
            if start:
                taught_by = Classifier(copy_module(classifier.encoder), recipient.head)
            else:
                taught_by = teacher(larger.graph, generation.larger, recipient.head)
            if name == "cema":
                method: Method = Cema(classifier, taught_by, seed)
            else:
                clean = _at_cut(generation, larger.windows, start, _MOST_CLEAN) if start else larger.windows
                method = Joint(classifier, taught_by, clean, seed)
        elif name == "eata" and labelled is not None:
            known = _at_cut(generation, torch.from_numpy(labelled.windows), start, _MOST_REMEMBERED)
            method = Eata(classifier, matters=importance(classifier, known))
        else:
            method = ALONE[name](classifier)
        return Blended(method, classifier) if blended else method

    return make


def _at_cut(generation: Generation, windows: Tensor, cut: int, most: int) -> Tensor:
    """Activations (m, ...) at a cut of at most so many of the windows (n, samples), evenly chosen."""
    chosen, before = windows[:: -(-len(windows) // most)], generation.model.segments[:cut]
    with torch.inference_mode():
        return in_batches(lambda part: run_segments(before, part), chosen).clone()
