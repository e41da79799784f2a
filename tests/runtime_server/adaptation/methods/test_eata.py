import numpy as np
import torch

from runtime_server.adaptation.entropies import entropies
from runtime_server.adaptation.methods import Eata
from runtime_server.adaptation.methods import eata as eata_module
from runtime_server.adaptation.methods.eata import importance


def test_eata_takes_no_more_of_what_it_has_just_seen(classifier, windows):
    changed = classifier()
    reliable = windows[entropies(changed(windows)).detach() < 0.4 * np.log(4)][:1]
    method = Eata(changed)
    method.update(reliable)
    once = {name: value.clone() for name, value in changed.adaptable().items()}
    method.update(reliable)
    assert all(torch.equal(once[name], value) for name, value in changed.adaptable().items())


def test_eata_forgets_less_with_its_penalty(classifier, windows, monkeypatch):
    monkeypatch.setattr(eata_module, "MAX_COSINE", 2.0)
    monkeypatch.setattr(Eata, "PENALTY", 1.0)

    def moved(remembers):
        changed, begun = classifier(), classifier()
        matters = importance(changed, windows) if remembers else None
        method = Eata(changed, learning_rate=1e-4, matters=matters)
        for part in windows.split(4):
            method.update(part)
        with torch.no_grad():
            return sum(float((a - b).pow(2).sum()) for a, b in zip(
                changed.adaptable().values(), begun.adaptable().values(), strict=True))  # fmt: skip

    assert moved(True) < moved(False)
