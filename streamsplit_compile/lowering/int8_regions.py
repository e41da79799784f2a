"""Decides which operations of a block run in int8, in any format.

Layers with weights run in int8, and so do operations strictly between them. Everything else stays in float32: a power
spectrum before its logarithm spans more decades than 256 steps can represent, and so do the squares and square roots
of a norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto


class Kind(Enum):
    """How an operation behaves in int8."""

    LAYER = auto()
    """It has weights: a convolution or a matrix product."""
    BETWEEN = auto()
    """It passes int8 on: a sum, a pool, an activation function, a reshape."""
    LOG = auto()
    """Its input has a range that int8 cannot represent."""
    OTHER = auto()


@dataclass(frozen=True)
class Operation:
    """An operation, with the names of the activations that it reads and writes (without constants)."""

    kind: Kind
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def int8_operations(operations: Sequence[Operation], block_input: str, block_output: str) -> set[int]:
    """Indices of the operations that run in int8; empty if the block has no layer that gains from it."""
    makers = {name: index for index, operation in enumerate(operations) for name in operation.outputs}
    readers: dict[str, list[int]] = {}
    for index, operation in enumerate(operations):
        for name in operation.inputs:
            readers.setdefault(name, []).append(index)
    before_log = _ancestors(operations, makers)
    chosen = {
        index
        for index, operation in enumerate(operations)
        if operation.kind in (Kind.LAYER, Kind.BETWEEN) and index not in before_log and not _is_square(operation)
    }
    while True:
        stranded = {
            index
            for index in chosen
            if operations[index].kind is Kind.BETWEEN
            and not (
                all(name == block_input or makers.get(name) in chosen for name in operations[index].inputs)
                and all(
                    name == block_output or chosen.issuperset(readers.get(name, ()))
                    for name in operations[index].outputs
                )
            )
        }
        if not stranded:
            break
        chosen -= stranded
    return chosen if any(operations[index].kind is Kind.LAYER for index in chosen) else set()


def operations_before_log(operations: Sequence[Operation]) -> set[int]:
    """Indices of the logarithms and of all operations that they are computed from."""
    makers = {name: index for index, operation in enumerate(operations) for name in operation.outputs}
    return _ancestors(operations, makers)


def _ancestors(operations: Sequence[Operation], makers: dict[str, int]) -> set[int]:
    pending = [index for index, operation in enumerate(operations) if operation.kind is Kind.LOG]
    found: set[int] = set()
    while pending:
        index = pending.pop()
        if index not in found:
            found.add(index)
            pending.extend(makers[name] for name in operations[index].inputs if name in makers)
    return found


def _is_square(operation: Operation) -> bool:
    return len(operation.inputs) == 2 and operation.inputs[0] == operation.inputs[1]
