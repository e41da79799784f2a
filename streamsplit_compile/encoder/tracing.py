"""Exports a module with torch.export, for any batch size if possible."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from runtime_edge.errors import UsageError
from streamsplit_compile.encoder.plain_graph import has_branches
from streamsplit_compile.encoder.quiet import quiet

logger = logging.getLogger(__name__)


def check_arguments(module: nn.Module) -> None:
    """Raise UsageError for a forward() that requires more than one input."""
    try:
        inspect.signature(module.forward).bind(None)
    except TypeError as exc:
        raise UsageError(f"the encoder's forward(): {exc}; wrap it so that it takes only the waveform") from exc
    except ValueError:
        logger.debug("forward() has no signature to check")


def exported(module: nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """Export a module for (batch, *shape), as it is or with the integers in its buffers as constants.

    Raises the errors of torch.export.
    """
    try:
        return _as_is(module, shape)
    except GuardOnDataDependentSymNode:
        if not has_sizes(module):
            raise
        with fixed_sizes(module):
            return _as_is(module, shape)


@contextmanager
def fixed_sizes(module: nn.Module) -> Iterator[None]:
    """Treat single integers in non-persistent buffers as constants while the block runs.

    Codecs keep strides and kernel sizes in integer buffers and compute paddings from them. torch.export does not know a
    buffer's value; a buffer that no state_dict holds cannot change, so its value may be written into the graph.
    """
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
    """Whether a module or one of its submodules keeps single integers in non-persistent buffers."""
    return bool(_sizes(module))


def _as_is(module: nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """Export for any batch size if possible, otherwise for a batch of one."""
    example = torch.zeros(2, *shape)
    try:
        with quiet():
            program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        if not has_branches(program.graph_module):
            return program
    except Exception as exc:
        logger.debug("not for any batch: %s", exc)
    with quiet():
        return torch.export.export(module, (example[:1],))


def _sizes(module: nn.Module) -> dict[nn.Module, dict[str, torch.Tensor]]:
    """The modules with buffers of one integer that no state_dict holds, and these buffers by name."""
    kept = module.state_dict().keys()
    found: dict[nn.Module, dict[str, torch.Tensor]] = {}
    for path, part in module.named_modules():
        for name, value in part.named_buffers(recurse=False):
            whole = not (value.is_floating_point() or value.is_complex())
            if whole and value.dim() == 0 and f"{path}.{name}".lstrip(".") not in kept:
                found.setdefault(part, {})[name] = value
    return found


def _with_constants(kind: type[nn.Module], sizes: dict[str, torch.Tensor]) -> type[nn.Module]:
    """A class whose instances have these values instead of the buffers."""

    def constant(value: torch.Tensor) -> property:
        number, dtype = value.item(), value.dtype
        # Created at each call: torch.export knows the value of a tensor whose creation it traces.
        return property(lambda self: torch.tensor(number, dtype=dtype))

    properties: dict[str, Any] = {name: constant(value) for name, value in sizes.items()}
    return type(kind.__name__, (kind,), properties)
