"""The part of a segment that depends on its parameters alone, as a small program that is plain data.

    body, program = separate(fold(segment), names)
    values = program.run(tensors)        # the arrays that `body` needs, from new weights of the same graph

Everything the encoder does to a weight before it is combined with data (a folded norm, a weight norm, a gathered
position bias) is a step of the program; the rest of the segment sees only finished arrays, so a converter has little to
fold.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from runtime_edge.errors import FormatError, UsageError

Array = npt.NDArray[Any]
_PLACEMENT = {"device", "layout", "pin_memory", "memory_format"}


class Parameter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of the encoder, under the name of the user's module."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class ProgramConstant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fixed array that steps use."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


class ProgramStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ATen operation. A value among the arguments is `{"value": index}`, a dtype `{"dtype": name}`."""

    op: str
    args: list[Any]
    kwargs: dict[str, Any]


class WeightProgram(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Computes finished arrays from named parameters. Values are numbered: parameters, then constants, then steps."""

    parameters: list[Parameter]
    constants: list[ProgramConstant]
    steps: list[ProgramStep]
    results: list[int]

    def run(self, tensors: Mapping[str, Array]) -> list[Array]:
        """The finished arrays, in the order of `results`.

        Raises KeyError when a parameter is missing, FormatError when one has another shape or dtype or the program
        does not hold together.
        """
        values = [_given(parameter, tensors[parameter.name]) for parameter in self.parameters]
        try:
            values += [_tensor(np.frombuffer(c.data, c.dtype).reshape(c.shape)) for c in self.constants]
            with torch.no_grad():
                for step in self.steps:
                    values.append(_operation(step.op)(*_decode(step.args, values), **_decode(step.kwargs, values)))
            return [values[index].numpy() for index in self.results]
        except (IndexError, RuntimeError, TypeError, ValueError, AttributeError) as exc:
            reason = str(exc).strip().split("\n")[0]
            raise FormatError(f"kept graph: its weights cannot be worked out ({reason}); compile it again") from None


def separate(segment: fx.GraphModule, parameters: Collection[str]) -> tuple[fx.GraphModule, WeightProgram]:
    """Take out of a segment everything that depends only on the tensors named in `parameters` and on constants.

    Returns the rest, whose buffer `weight_<i>` stands for result i, and the program that computes the results.
    """
    body = fx.Graph()
    root = torch.nn.Module()
    builder = _Builder(segment, parameters)
    copies: dict[fx.Node, fx.Node] = {}
    for node in segment.graph.nodes:
        if builder.claim(node):
            continue
        for used in node.all_input_nodes:
            if used not in copies:
                name, value = builder.finish(used)
                root.register_buffer(name, value)
                copies[used] = body.get_attr(name)
        copies[node] = body.node_copy(node, copies.__getitem__)
        if node.op == "get_attr":
            # A nested graph, which torch.export makes of code under no_grad.
            root.register_module(str(node.target), segment.get_submodule(str(node.target)))
    body.lint()
    return fx.GraphModule(root, body), builder.program()


class _Builder:
    """Finds the nodes that do not depend on data, and writes the program for those that depend on parameters."""

    def __init__(self, segment: fx.GraphModule, parameters: Collection[str]) -> None:
        self._segment, self._names = segment, parameters
        self._known: dict[fx.Node, torch.Tensor] = {}
        self._depends: dict[fx.Node, bool] = {}
        self._results: list[fx.Node] = []
        self._constants = 0

    def claim(self, node: fx.Node) -> bool:
        """Evaluate a node if it does not depend on data; returns False if it does."""
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self._segment)
            if not isinstance(value, torch.Tensor):
                return False
            self._known[node] = value.detach()
            self._depends[node] = node.target in self._names
            return True
        if node.op != "call_function" or any(used not in self._known for used in node.all_input_nodes):
            return False
        operation: Any = node.target
        with torch.no_grad():
            args, kwargs = fx.map_arg((node.args, node.kwargs), self._known.__getitem__)
            value = operation(*args, **kwargs)
        if not isinstance(value, torch.Tensor):
            return False
        self._known[node] = value
        self._depends[node] = any(self._depends[used] for used in node.all_input_nodes)
        return True

    def finish(self, node: fx.Node) -> tuple[str, torch.Tensor]:
        """Buffer name and value of a node that the rest of the segment reads."""
        if not self._depends[node]:
            self._constants += 1
            return f"constant_{self._constants - 1}", self._known[node].clone(memory_format=torch.contiguous_format)
        self._results.append(node)
        return f"weight_{len(self._results) - 1}", self._known[node].clone(memory_format=torch.contiguous_format)

    def program(self) -> WeightProgram:
        """The steps from parameters to results; constants are evaluated already."""
        needed = _ancestors(self._results, self._depends)
        inputs = [node for node in needed if node.op == "get_attr" and self._depends[node]]
        fixed = [node for node in needed if not self._depends[node]]
        steps = [node for node in needed if node.op != "get_attr" and self._depends[node]]
        index = {node: i for i, node in enumerate([*inputs, *fixed, *steps])}
        return WeightProgram(
            [_parameter(str(node.target), self._known[node].numpy()) for node in inputs],
            [_constant(self._known[node]) for node in fixed],
            [_step(node, index) for node in steps],
            [index[node] for node in self._results],
        )


def _ancestors(results: Sequence[fx.Node], depends: Mapping[fx.Node, bool]) -> list[fx.Node]:
    """The nodes that the results need, in graph order; a constant's own inputs are not followed."""
    needed: set[fx.Node] = set()
    pending = list(results)
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(node.all_input_nodes if depends[node] else [])
    return [node for node in depends if node in needed]


def _step(node: fx.Node, index: Mapping[fx.Node, int]) -> ProgramStep:
    schema = node.target._schema  # type: ignore[union-attr]
    if not schema.name.startswith("aten::"):
        raise UsageError(f"node {node.name}: {node.target} is not an ATen operation; export the encoder without it")
    op = f"{schema.name.removeprefix('aten::')}.{schema.overload_name or 'default'}"
    kwargs = {name: value for name, value in node.kwargs.items() if name not in _PLACEMENT}
    return ProgramStep(op, _encode(node.args, index), _encode(kwargs, index))


def _encode(argument: Any, index: Mapping[fx.Node, int]) -> Any:
    if isinstance(argument, fx.Node):
        return {"value": index[argument]}
    if isinstance(argument, torch.dtype):
        return {"dtype": str(argument).removeprefix("torch.")}
    if isinstance(argument, (list, tuple)):
        return [_encode(item, index) for item in argument]
    if isinstance(argument, dict):
        return {name: _encode(item, index) for name, item in argument.items()}
    return argument


def _decode(argument: Any, values: Sequence[torch.Tensor]) -> Any:
    if isinstance(argument, list):
        return [_decode(item, values) for item in argument]
    if isinstance(argument, dict):
        if argument.keys() == {"value"}:
            return values[argument["value"]]
        if argument.keys() == {"dtype"}:
            return getattr(torch, argument["dtype"])
        return {name: _decode(item, values) for name, item in argument.items()}
    return argument


def _operation(name: str) -> Any:
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload) if re.fullmatch(r"\w+\.\w+", name) else None
    if operation is None or operation._schema.is_mutable:
        raise ValueError(f"{name} is not a pure operation")
    return operation


def _parameter(name: str, value: Array) -> Parameter:
    return Parameter(name, value.dtype.str, value.shape)


def _given(parameter: Parameter, value: Array) -> torch.Tensor:
    if _parameter(parameter.name, value) != parameter:
        raise FormatError(
            f"tensor {parameter.name!r} is {value.dtype.str} {value.shape}, this graph was compiled for "
            f"{parameter.dtype} {parameter.shape}"
        )
    return _tensor(value)


def _constant(value: torch.Tensor) -> ProgramConstant:
    array = np.ascontiguousarray(value.numpy())
    return ProgramConstant(array.dtype.str, array.shape, array.tobytes())


def _tensor(array: Array) -> torch.Tensor:
    """A tensor that shares the array's memory if torch allows it (not if it is read-only or has odd strides)."""
    return torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else np.array(array))
