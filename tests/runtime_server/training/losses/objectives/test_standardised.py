import torch
from torch.nn.functional import batch_norm

from runtime_server.training.losses.objectives.standardised import standardised


def test_is_torchs_batch_norm_of_the_batch():
    values = 3 + 2 * torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(standardised(values), batch_norm(values, None, None, training=True))


def test_one_row_and_a_constant_column_are_zero():
    assert standardised(torch.ones(1, 3)).tolist() == [[0, 0, 0]]
    assert standardised(torch.tensor([[1.0, 2.0], [1.0, 4.0]]))[:, 0].tolist() == [0, 0]
