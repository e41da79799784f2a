"""Several processes that train one encoder together: this process's rank, and the communication between ranks.

    torchrun --nproc-per-node 2 -m runtime_server encoder.pt bundle/ --state server/ --broker nats://127.0.0.1:4222

Rank r has the partitions p with p mod world == r: it completes and counts their frames and trains on them. All ranks
take each step together: every rank embeds its own windows, sees the embeddings of all, and so computes the same loss
and its own part of the gradient; the parts are added up. A process started without torchrun is alone, and every method
here then returns what it was given.

Methods that say so must be called by all ranks, in the same order; they wait for the other ranks.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from runtime_edge.errors import FormatError, LinkError, UsageError
from runtime_edge.formats import subjects

_PATIENCE = timedelta(minutes=10)
"""How long the other ranks wait while the first compiles a release; a crash is noticed at once."""
_MEETING = timedelta(minutes=2)
_LOOK_S = 0.05
_SEEDS_APART = 1_000_003


@dataclass(frozen=True)
class EmbeddingBatch:
    """Embeddings of a batch, and what a loss needs to know about each; all rows of one window are at the same index."""

    anchors: Tensor
    """float32[n, d]."""
    positives: Tensor
    """float32[n, d]."""
    negatives: Tensor | None
    """float32[n, m, d], virtual ones for each anchor."""
    windows: Tensor
    """int64[n], window indices."""
    chains: Tensor
    """int64[n], a number for each boot of each device, the same on all ranks."""


class Ranks:
    """One of the processes that train together. Every method raises LinkError if another one is gone."""

    def __init__(self, rank: int = 0, world: int = 1, group: dist.ProcessGroup | None = None) -> None:
        """Raises UsageError if there are more ranks than partitions."""
        if world > subjects.PARTITIONS:
            raise UsageError(f"{world} ranks: there are {subjects.PARTITIONS} partitions; start as many ranks at most")
        self.rank, self.world, self._group = rank, world, group

    @classmethod
    def join(cls) -> Ranks:
        """Join the process group that torchrun has started; without torchrun, a single rank.

        Raises UsageError or LinkError.
        """
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        ranks = cls(rank, world)
        host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
        with ranks._link_errors():
            store = rendezvous(TCPStore(host, port, world, is_master=False, timeout=_MEETING), rank, world)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=_PATIENCE)
        ranks._group = dist.group.WORLD
        return ranks

    def leave(self) -> None:
        """Leave the process group."""
        if self._group is not None and self._group is dist.group.WORLD:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this rank releases, announces and answers for all."""
        return self.rank == 0

    @property
    def partitions(self) -> range:
        """The stream's partitions that belong to this rank."""
        return range(self.rank, subjects.PARTITIONS, self.world)

    def seed(self, seed: int) -> int:
        """A seed for this rank alone; the first rank's is `seed`."""
        return seed + _SEEDS_APART * self.rank

    def sum(self, *numbers: int) -> list[int]:
        """Each number added up over the ranks. All ranks call it."""
        if self._group is None:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.int64)
        with self._link_errors():
            self._group.allreduce([total]).wait()
        return total.tolist()

    def check_alike(self, number: int, what: str) -> None:
        """Raise FormatError unless all ranks have the same number below 2^32. All ranks call it."""
        if self.sum(number)[0] != number * self.world:
            raise FormatError(
                f"rank {self.rank}: the {what} are not those of the other ranks; do all share one --state?"
            )

    def gather(self, *tensors: Tensor) -> list[Tensor]:
        """Each tensor [n, ...] with the rows of all ranks, by rank; n may differ, and be 0. All ranks call it.

        The other dimensions and the dtypes must be the same everywhere. This rank's rows keep their gradient, those of
        the others are constants: added up over the ranks, the gradients of a loss of all rows are those of one process.
        """
        if self._group is None:
            return list(tensors)
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        with self._link_errors():
            self._group.allgather([counts], [torch.tensor([len(tensors[0])])]).wait()
        rows = [int(count) for count in counts]
        found = []
        for own in tensors:
            padded = own.new_zeros(max(rows), *own.shape[1:])
            padded[: len(own)] = own.detach()
            parts = [torch.empty_like(padded) for _ in rows]
            if padded.numel():
                with self._link_errors():
                    self._group.allgather([parts], [padded]).wait()
            kept = [part[:count] for part, count in zip(parts, rows, strict=True)]
            kept[self.rank] = own
            found.append(torch.cat(kept))
        return found

    def gather_batch(self, batch: EmbeddingBatch) -> EmbeddingBatch:
        """The batch of all ranks; without virtual negatives while a rank that has anchors has none. All ranks call it.

        A rank's batch may be empty: the rank still takes part, so that the others do not wait for it in vain.
        """
        if self._group is None:
            return batch
        plain = self.gather(batch.anchors, batch.positives, batch.windows, batch.chains)
        width = 0 if batch.negatives is None else batch.negatives.shape[1]
        without, ranks, most = self.sum(bool(len(batch.anchors)) and not width, bool(width), width)
        negatives = None
        if not without and ranks:
            own = batch.negatives
            if own is None:  # no anchors, so none of anything
                own = batch.anchors.new_empty(0, most // ranks, batch.anchors.shape[1])
            (negatives,) = self.gather(own)
        return EmbeddingBatch(plain[0], plain[1], negatives, plain[2], plain[3])

    def add_gradients(self, parameters: Sequence[nn.Parameter], of_all_rows: Sequence[nn.Parameter] = ()) -> None:
        """Add up each parameter's gradient over the ranks. All ranks call it.

        For parameters in `of_all_rows`, every rank has the gradient of the gathered batch: their gradients are
        averaged. A parameter that was part of no rank's loss keeps no gradient, so that the optimiser skips it, as with
        one process.
        """
        if self._group is None:
            return
        for parameter in of_all_rows:
            if parameter.grad is not None:
                parameter.grad /= self.world
        parameters = [*parameters, *of_all_rows]
        used = self.sum(*(parameter.grad is not None for parameter in parameters))
        active = [parameter for parameter, count in zip(parameters, used, strict=True) if count]
        if not active:
            return
        parts = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in active]
        flat = torch.cat(parts)
        with self._link_errors():
            self._group.allreduce([flat]).wait()
        for parameter, part in zip(active, torch.split(flat, [p.numel() for p in active]), strict=True):
            # In its parameter's memory layout: torch's fused optimiser goes through both in memory order.
            parameter.grad = torch.empty_like(parameter).copy_(part.view(parameter.shape))

    @contextlib.contextmanager
    def _link_errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as exc:
            why = " ".join(str(exc).split())[:200]
            raise LinkError(f"rank {self.rank} of {self.world}: another rank is gone ({why})") from None


def rendezvous(store: Store, rank: int, world: int, patience: timedelta = _MEETING) -> Store:
    """A part of the store that only these processes know. Raises RuntimeError if the others do not come.

    torchrun's store outlives the processes that it restarts, and entries of the former processes, such as their
    addresses, look like those of living ones. So the first rank opens a room with a random name, each of the others
    leaves its token there, and enters once the first has seen this very token.
    """
    deadline, token = time.monotonic() + patience.total_seconds(), secrets.token_hex(8)
    if rank == 0:
        store.set("ssc/room", token)
    while time.monotonic() < deadline:
        if store.check(["ssc/room"]):
            room = store.get("ssc/room").decode()
            here, seen = [f"ssc/{room}/{other}" for other in range(world)], f"ssc/{room}/seen"
            store.set(here[rank], token)
            if rank == 0 and store.check(here):
                store.set(seen, " ".join(store.get(key).decode() for key in here))
            if store.check([seen]) and store.get(seen).decode().split()[rank] == token:
                return PrefixStore(f"ssc/{room}/group", store)
        time.sleep(_LOOK_S)
    raise RuntimeError(f"no {world} ranks within {patience.total_seconds():.0f} s")
