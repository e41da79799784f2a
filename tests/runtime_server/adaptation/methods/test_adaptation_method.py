"""What all methods without a teacher do."""

import numpy as np
import pytest
import torch

from runtime_server.adaptation.entropies import entropies
from runtime_server.adaptation.methods import ALONE
from runtime_server.adaptation.methods import eata as eata_module
from runtime_server.adaptation.methods import sar as sar_module


def mean_entropy(classifier, windows):
    with torch.no_grad():
        return float(entropies(classifier(windows)).mean())


@pytest.mark.parametrize("name", ALONE)
def test_entropy_falls_and_only_norms_move(classifier, windows, name, monkeypatch):
    monkeypatch.setattr(eata_module, "MAX_COSINE", 2.0)
    monkeypatch.setattr(sar_module, "COLLAPSED", -1.0)
    monkeypatch.setattr(sar_module, "RADIUS", 1e-3)
    changed, begun = classifier(), classifier()
    reliable = windows[entropies(changed(windows)).detach() < 0.4 * np.log(4)]
    assert len(reliable) > 2
    method = ALONE[name](changed)
    for _ in range(10):
        method.update(reliable)
    assert mean_entropy(changed, reliable) < mean_entropy(begun, reliable)
    for key, value in begun.encoder.state_dict().items():
        if key not in begun.adaptable():
            assert torch.equal(value, changed.encoder.state_dict()[key]), key


@pytest.mark.parametrize("name", ["eata", "sar"])
def test_hopeless_windows_change_nothing(classifier, name):
    changed, begun = classifier(), classifier()
    changed.weight.mul_(1e-3)  # no label stands out
    changed.bias.zero_()
    method = ALONE[name](changed)
    method.update(torch.randn(8, 1024, generator=torch.Generator().manual_seed(0)))
    for key, value in begun.encoder.state_dict().items():
        assert torch.equal(value, changed.encoder.state_dict()[key])
