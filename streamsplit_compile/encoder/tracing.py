"""A module as a graph of torch.export, for any batch where that works."""

from __future__ import annotations

import inspect
import logging

import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from runtime_edge.errors import UsageError
from streamsplit_compile.encoder.fixed_sizes import fixed_sizes, has_sizes
from streamsplit_compile.encoder.plain_graph import has_branches
from streamsplit_compile.encoder.quiet import quiet

logger = logging.getLogger(__name__)


def check_arguments(module: torch.nn.Module) -> None:
    """Raises UsageError for a forward() that asks for more than one input."""
    try:
        inspect.signature(module.forward).bind(None)
    except TypeError as exc:
        raise UsageError(f"the encoder's forward(): {exc}; wrap it so that it takes the waveform alone") from exc
    except ValueError:
        logger.debug("forward() has no signature to check")


def exported(module: torch.nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """A module for (batch, *shape), as it is or with the integers in its buffers as constants.

    Raises whatever torch.export does.
    """
    try:
        return _as_is(module, shape)
    except GuardOnDataDependentSymNode:
        if not has_sizes(module):
            raise
        with fixed_sizes(module):
            return _as_is(module, shape)


def _as_is(module: torch.nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """For any batch where that works, else for a batch of one."""
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
