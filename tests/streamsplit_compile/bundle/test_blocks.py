"""What no device would run is not written."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from runtime_edge.errors import UsageError
from streamsplit_compile.bundle.blocks import lower_blocks
from streamsplit_compile.cost.cost_model import BlockWork
from streamsplit_compile.encoder.graph import Candidate

pytestmark = pytest.mark.integration


class Noise(nn.Module):
    """Adds noise of its own at every window."""

    def forward(self, x):
        return x + torch.rand_like(x)


def test_an_operator_that_devices_refuse_is_refused_by_the_compiler(tmp_path):
    cut = Candidate(0, "x", "x", (1, 4), True)
    work = BlockWork(1, 1, 1, 1, 1)
    with pytest.raises(UsageError, match=r"onnx in fp32: .*operator 'Random\w+' .*write this part of the encoder"):
        lower_blocks(tmp_path, [fx.symbolic_trace(Noise())], [cut], [work], {}, {}, ["onnx"], "folded", lambda *_: None)
