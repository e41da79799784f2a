"""Each name makes its method, with what it needs."""

import numpy as np
import pytest
import torch

from runtime_server.adaptation.adaptation_judge import LabelledWindows
from runtime_server.adaptation.classifier import Classifier
from runtime_server.adaptation.make_method import method_maker
from runtime_server.adaptation.methods import Cema, Eata, Joint, Sar, Tent
from runtime_server.adaptation.methods.eata import importance
from runtime_server.suffix.generations import copy_module


@pytest.mark.parametrize(
    ("name", "kind"), [("joint", Joint), ("cema", Cema), ("tent", Tent), ("eata", Eata), ("sar", Sar)]
)
def test_a_method_moves_the_layers(name, kind, taught, larger, recipient, tiny_encoder, windows):
    classifier = Classifier(copy_module(tiny_encoder.graph.module), recipient.head)
    before = {name: value.detach().clone() for name, value in classifier.adaptable().items()}
    method = method_maker(name, larger, 0)(taught.newest, recipient, classifier, None, 0)
    assert type(method) is kind
    for _ in range(3):
        method.update(windows)
    assert any(not torch.equal(before[name], value) for name, value in classifier.adaptable().items())


def test_eata_takes_known_sounds_to_find_out_what_must_not_move(taught, recipient, tiny_encoder, windows):
    known = LabelledWindows(windows.numpy(), np.zeros(len(windows), np.int64))
    classifier = Classifier(copy_module(tiny_encoder.graph.module), recipient.head)
    method = method_maker("eata", None, 0)(taught.newest, recipient, classifier, known, 0)
    matters = importance(Classifier(copy_module(tiny_encoder.graph.module), recipient.head), windows)
    alone = Classifier(copy_module(tiny_encoder.graph.module), recipient.head)
    reference = Eata(alone, matters=matters)
    for part in windows.split(4):
        method.update(part)
        reference.update(part)
    for name, value in alone.adaptable().items():
        torch.testing.assert_close(classifier.adaptable()[name], value, rtol=0, atol=0)
