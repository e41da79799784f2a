"""Sizes that a module keeps in buffers, as constants while it is exported.

    with fixed_sizes(module): ...

Codecs hold strides and kernel sizes in integer buffers and compute paddings from them. To torch.export a buffer's
value is unknown; one that no state_dict holds cannot change, so that its value may be written into the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def fixed_sizes(module: nn.Module) -> Iterator[None]:
    """While the block runs, single integers in non-persistent buffers are constants."""
    found = _sizes(module)
    kinds = {part: type(part) for part in found}
    try:
        for part, sizes in found.items():
            for name in sizes:
                delattr(part, name)
            part.__class__ = _with_constants(type(part), sizes)
        yield
    finally:
        for part, sizes in found.items():
            part.__class__ = kinds[part]
            for name, value in sizes.items():
                part.register_buffer(name, value, persistent=False)


def has_sizes(module: nn.Module) -> bool:
    """Whether a module, or one in it, keeps single integers in non-persistent buffers."""
    return bool(_sizes(module))


def _sizes(module: nn.Module) -> dict[nn.Module, dict[str, torch.Tensor]]:
    """For each module that has some its own buffers of one integer that no state_dict holds."""
    kept = module.state_dict().keys()
    found: dict[nn.Module, dict[str, torch.Tensor]] = {}
    for path, part in module.named_modules():
        for name, value in part.named_buffers(recurse=False):
            whole = not (value.is_floating_point() or value.is_complex())
            if whole and value.dim() == 0 and f"{path}.{name}".lstrip(".") not in kept:
                found.setdefault(part, {})[name] = value
    return found


def _with_constants(kind: type[nn.Module], sizes: dict[str, torch.Tensor]) -> type[nn.Module]:
    """A class whose instances have these values where they had buffers."""

    def constant(value: torch.Tensor) -> property:
        number, dtype = value.item(), value.dtype
        # Made anew at each call: torch.export knows the value of a tensor that it sees being made.
        return property(lambda self: torch.tensor(number, dtype=dtype))

    properties: dict[str, Any] = {name: constant(value) for name, value in sizes.items()}
    return type(kind.__name__, (kind,), properties)
