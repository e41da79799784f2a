"""Makes the in-place ops of an exported graph functional, without changing what the graph computes."""

from __future__ import annotations

import operator

import torch
from torch import fx

from runtime_edge.errors import UsageError
from streamsplit_compile.encoder.source_lines import with_line


def reads_through_views(graph: fx.Graph) -> bool:
    """Whether a tensor is read after an in-place change under another name (a view of it, or a tensor it views).

    Only then does torch make the whole program functional, which renames nodes and decomposes some operators.
    Raises UsageError when the names are connected by dropout in eval mode, the one alias that torch does not follow.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    group: dict[fx.Node, set[fx.Node]] = {node: {node} for node in graph.nodes}
    found = False
    for node in graph.nodes:
        changed = _mutated(node)
        for source in changed:
            stale = [alias for alias in group[source] if any(order[user] > order[node] for user in alias.users)]
            if stale and any(alias.target is torch.ops.aten.dropout.default for alias in group[source]):
                raise UsageError(f"{with_line(node)}: {stale[0].name} is used after it was changed in place")
            found = found or bool(stale)
        if not changed and _is_view(node):
            merged = set().union(*(group[used] for used in node.all_input_nodes), {node})
            group.update(dict.fromkeys(merged, merged))
    return found


def make_functional(module: fx.GraphModule) -> None:
    """Replace in-place ops with their functional form, so that values crossing a cut never change afterwards.

    Raises UsageError naming a node that has no such form, or that changes a buffer.
    """
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    for node in list(module.graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable:
            continue
        mutated = _mutated(node)
        name = schema.name.split("::")[1]
        functional = getattr(getattr(torch.ops.aten, name.rstrip("_"), None), schema.overload_name or "default", None)
        if functional is None or not name.endswith("_") or len(mutated) != 1:
            raise UsageError(f"{with_line(node)}: {node.target} changes its input; use the functional form")
        (source,) = mutated
        if any(order[user] > order[node] for user in source.users):
            raise UsageError(f"{with_line(node)}: {source.name} is used after it was changed in place")
        if source.op == "get_attr" and (node.users or len(source.users) > 1):
            raise UsageError(f"{with_line(node)}: changes {source.target} at every call; an encoder cannot keep state")
        node.target = functional
    module.recompile()


def _is_view(node: fx.Node) -> bool:
    """Whether a node's value may share memory with an input of the node."""
    if node.target in (operator.getitem, torch.ops.aten.dropout.default):
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(value.alias_info is not None for value in schema.returns)


def _mutated(node: fx.Node) -> list[fx.Node]:
    """The inputs that a node changes in place."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return []
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments]
    values = [node.kwargs.get(argument.name) for argument in schema.arguments]
    values[: len(node.args)] = node.args
    return [value for value, write in zip(values, written, strict=True) if write and isinstance(value, fx.Node)]
