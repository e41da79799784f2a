import numpy as np
import pytest
import torch

from runtime_server.adaptation.entropies import entropies
from runtime_server.adaptation.methods import ALONE, Eata, Sar
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
        method = Eata(changed, learning_rate=1e-4)
        if remembers:
            method.remember(windows)
        for part in windows.split(4):
            method.update(part)
        with torch.no_grad():
            return sum(float((a - b).pow(2).sum()) for a, b in zip(
                changed.adaptable().values(), begun.adaptable().values(), strict=True))  # fmt: skip

    assert moved(True) < moved(False)


def test_sar_begins_again_before_it_gives_one_answer_to_everything(classifier, windows, monkeypatch):
    monkeypatch.setattr(sar_module, "RADIUS", 1e-3)
    changed, begun = classifier(), classifier()
    reliable = windows[entropies(changed(windows)).detach() < 0.4 * np.log(4)]
    method = Sar(changed, learning_rate=0.01)
    for _ in range(60):
        method.update(reliable)
        if method.resets:
            break
    assert method.resets == 1
    for name, value in begun.adaptable().items():
        assert torch.equal(value, changed.adaptable()[name])
