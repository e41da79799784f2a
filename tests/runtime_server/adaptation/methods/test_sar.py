import numpy as np
import torch

from runtime_server.adaptation.entropies import entropies
from runtime_server.adaptation.methods import Sar
from runtime_server.adaptation.methods import sar as sar_module


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
