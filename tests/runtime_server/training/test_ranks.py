"""Ranks that train together, as threads here: what all of them know, and that a step of theirs is a step of one."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

from runtime_edge.errors import LinkError, UsageError
from runtime_edge.formats import subjects
from runtime_server.training.ranks import EmbeddingBatch, Ranks, rendezvous


def test_every_partition_has_one_rank_whatever_their_number():
    for world in range(1, subjects.PARTITIONS + 1):
        owned = sorted(partition for rank in range(world) for partition in Ranks(rank, world).partitions)
        assert owned == list(range(subjects.PARTITIONS))
    with pytest.raises(UsageError, match="partitions; start as many"):
        Ranks(0, subjects.PARTITIONS + 1)


def test_numbers_are_added_up_and_rows_of_all_ranks_are_everywhere(together):
    def work(ranks):
        own = torch.full((ranks.rank, 2), float(ranks.rank))  # rank 0 has none
        return ranks.sum(ranks.rank, 5), *ranks.gather(own, own.long())

    for total, rows, whole in together(3, work):
        assert total == [3, 15]
        assert rows.tolist() == [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]
        assert torch.equal(whole, rows.long())


def test_gradients_of_a_loss_of_all_rows_are_those_of_one_process(together):
    torch.manual_seed(0)
    inputs = torch.randn(7, 3)

    net, unused = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), nn.Linear(9, 9)
    copies = [copy.deepcopy((net, unused)) for _ in range(3)]

    def loss_of(z):  # depends on every pair, as InfoNCE does
        return (z @ z.T).softmax(dim=1).diagonal().log().mean()

    def work(ranks):
        net, unused = copies[ranks.rank]
        own = inputs[:7] if ranks.world == 1 else (inputs[:0], inputs[:3], inputs[3:])[ranks.rank]
        loss = loss_of(ranks.gather(net(own))[0])
        if len(own):
            loss.backward()
        ranks.add_gradients([*net.parameters(), *unused.parameters()])
        assert all(parameter.grad is None for parameter in unused.parameters())
        return loss.item(), torch.cat([parameter.grad.flatten() for parameter in net.parameters()])

    expected_loss, expected = work(Ranks())
    copies[0] = copy.deepcopy(copies[1])
    for loss, gradient in together(3, work):
        assert loss == pytest.approx(expected_loss, abs=1e-6)
        assert torch.allclose(gradient, expected, atol=1e-6)


def test_a_fused_step_on_convolutions_laid_out_by_channels_is_that_of_one_process(together):
    torch.manual_seed(0)
    inputs = torch.randn(4, 3, 6, 6)
    copies = [nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last) for _ in range(3)]
    for one in copies[1:]:
        one.load_state_dict(copies[0].state_dict())

    def work(ranks, net, own):
        net(own).square().sum().backward()
        ranks.add_gradients(list(net.parameters()))
        torch.optim.AdamW(net.parameters(), lr=0.1, fused=True).step()
        return net.weight.detach().clone()

    expected = work(Ranks(), copies[2], inputs)
    halves = inputs[:2], inputs[2:]
    for found in together(2, lambda ranks: work(ranks, copies[ranks.rank], halves[ranks.rank])):
        assert torch.allclose(found, expected, atol=1e-5)


def test_of_a_gradient_that_every_rank_has_of_all_rows_the_mean_is_taken(together):
    copies = [nn.Linear(2, 1, bias=False) for _ in range(3)]

    def work(ranks):
        predictor, rows = copies[ranks.rank], torch.full((1, 2), float(ranks.rank))
        predictor(ranks.gather(rows)[0]).sum().backward()
        ranks.add_gradients([], [predictor.weight])
        return predictor.weight.grad.tolist()

    assert together(3, work) == [[[3.0, 3.0]]] * 3


@pytest.mark.parametrize("cold", [False, True])
def test_a_batch_has_virtual_negatives_when_every_rank_with_anchors_has(together, cold):
    def work(ranks):
        rows = (2, 0, 1)[ranks.rank]
        z = torch.full((rows, 4), float(ranks.rank))
        negatives = None if not rows or (cold and ranks.rank == 2) else torch.ones(rows, 5, 4)
        return ranks.gather_batch(
            EmbeddingBatch(z, z, negatives, torch.arange(rows), torch.full((rows,), 2**62 + ranks.rank))
        )

    for batch in together(3, work):
        assert batch.anchors[:, 0].tolist() == [0.0, 0.0, 2.0]
        assert batch.windows.tolist() == [0, 1, 0]
        assert batch.chains.tolist() == [2**62, 2**62, 2**62 + 2]
        assert (batch.negatives is None) == cold
        assert cold or batch.negatives.shape == (3, 5, 4)


def test_a_rank_that_is_gone_is_one_clear_error(together):
    def work(ranks):
        ranks.sum(0)
        if ranks.rank == 1:
            return None
        with pytest.raises(LinkError, match="rank 0 of 2: another rank is gone"):
            ranks.sum(0)

    together(2, work)


def test_ranks_that_are_started_again_do_not_take_the_former_ones_for_each_other():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    class Announced(dist.TCPStore):
        def set(self, key, value):
            super().set(key, value)
            came.set()

    def come(rank, first):
        if first not in (None, rank):
            came.wait(60.0)
        client = Announced("127.0.0.1", store.port, is_master=False)
        room = rendezvous(client, rank, 2, timedelta(seconds=10))
        if rank == 0:
            room.set("word", str(next(words)))
        return room.get("word")

    words = iter(range(9))
    with ThreadPoolExecutor(2) as pool:
        for attempt, first in enumerate((None, 1, 0)):
            if attempt == 2:  # one of the second attempt's came, and was killed before the other did
                with pytest.raises(RuntimeError, match="no 2 ranks"):
                    rendezvous(store, 0, 2, timedelta(seconds=0.2))
            came = threading.Event()
            met = list(pool.map(come, range(2), (first, first)))
            assert met == [str(attempt).encode()] * 2
