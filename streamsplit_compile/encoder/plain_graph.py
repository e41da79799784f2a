"""Rewrites an exported graph into operators that every later step understands, without changing what it computes.

    make_plain(module)     no graph within the graph, float32 throughout

float16 and bfloat16 weights keep their exact values; only the arithmetic becomes more precise, because no device's
runtime computes in these types on a CPU.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from runtime_edge.errors import UsageError

aten = torch.ops.aten

_GRADIENT = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_COND = torch.ops.higher_order.cond
_SETTINGS: dict[Any, int] = {_GRADIENT: 1, _AUTOCAST: 4}
"""Number of a region's arguments before its graph."""
HALF = (torch.float16, torch.bfloat16)


def has_branches(module: fx.GraphModule) -> bool:
    """Whether a graph chooses between two others, once for all windows of a batch."""
    return any(node.target is _COND for node in module.graph.nodes)


def make_plain(module: fx.GraphModule) -> None:
    """Inline regions (`no_grad`, `autocast`) and the branches of `torch.cond` into the graph; widen to float32.

    Values that leave `no_grad` are detached; both branches are computed and one result is chosen. Raises UsageError
    naming a node whose graph cannot be inlined.
    """
    while True:
        regions = [node for node in module.graph.nodes if node.target in _SETTINGS or node.target is _COND]
        if not regions:
            break
        for node in regions:
            _inline_branches(module, node) if node.target is _COND else _inline_region(module, node)
        module.graph.eliminate_dead_code()
    _widen(module)
    module.graph.lint()
    module.recompile()


def _inline_region(module: fx.GraphModule, node: fx.Node) -> None:
    settings = _SETTINGS[node.target]
    results = _copy_in(module, node, node.args[settings], node.args[settings + 1 :])
    frozen = node.target is _GRADIENT and node.args[0] is False
    _replace_results(node, [_detached(node, result) if frozen else result for result in results])


def _inline_branches(module: fx.GraphModule, node: fx.Node) -> None:
    condition, chosen, other, operands = node.args
    pairs = zip(*(_copy_in(module, node, branch, operands) for branch in (chosen, other)), strict=True)
    with node.graph.inserting_before(node):
        results = []
        for first, second in pairs:
            result = node.graph.call_function(aten.where.self, (condition, first, second))
            result.meta = dict(first.meta)
            results.append(result)
    _replace_results(node, results)


def _copy_in(module: fx.GraphModule, node: fx.Node, graph: Any, operands: Any) -> list[fx.Node]:
    """Copy the graph that a node runs into the outer one, before that node; returns its results."""
    inner = module.get_submodule(str(graph.target))
    if not isinstance(inner, fx.GraphModule):
        raise UsageError(f"node {node.name}: {node.target} runs {type(inner).__name__}, no graph")
    inputs = iter(operands)
    copies: dict[fx.Node, Any] = {}
    for part in inner.graph.nodes:
        if part.op == "placeholder":
            copies[part] = next(inputs)
        elif part.op == "output":
            values = part.args[0] if isinstance(part.args[0], (tuple, list)) else (part.args[0],)
            return [copies[value] for value in values]
        else:
            with node.graph.inserting_before(node):
                copies[part] = node.graph.node_copy(part, copies.__getitem__)
            if part.op == "get_attr":
                copies[part].target = f"{graph.target}.{part.target}"
            copies[part].meta.setdefault("nn_module_stack", node.meta.get("nn_module_stack"))
    raise UsageError(f"node {node.name}: {node.target} runs a graph without a result")


def _detached(node: fx.Node, result: fx.Node) -> fx.Node:
    with node.graph.inserting_before(node):
        detached = node.graph.call_function(aten.detach.default, (result,))
    detached.meta = dict(result.meta)
    return detached


def _replace_results(node: fx.Node, results: list[fx.Node]) -> None:
    for user in list(node.users):
        if user.target is not operator.getitem:
            raise UsageError(f"node {user.name}: takes all results of {node.target} at once")
        result = results[user.args[1]]  # type: ignore[index]
        user.replace_all_uses_with(result)
        name = user.name
        node.graph.erase_node(user)
        if result.target in (aten.detach.default, aten.where.self):
            # Bundles of earlier versions use this name for the value.
            result.name = name
    node.graph.erase_node(node)


def _widen(module: fx.GraphModule) -> None:
    """Replace float16 and bfloat16 by float32: in weights, casts and all values between."""
    nodes = list(module.graph.nodes)
    narrow = any(tensor.dtype in HALF for tensor in _attributes(module, nodes).values())
    if not narrow and not any(tensor.dtype in HALF for node in nodes for tensor in _values(node)):
        return
    for name, tensor in _attributes(module, nodes).items():
        if tensor.dtype in HALF:
            owner, _, last = name.rpartition(".")
            wide = tensor.detach().float()
            setattr(
                module.get_submodule(owner),
                last,
                torch.nn.Parameter(wide, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else wide,
            )
    for node in nodes:
        node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), _wide_type)
    with next(node for node in nodes if node.op == "placeholder").meta["val"].fake_mode:
        for node in nodes:
            if "val" in node.meta:
                node.meta["val"] = fx.node.map_aggregate(node.meta["val"], _wide_value)


def _wide_type(argument: Any) -> Any:
    return torch.float32 if argument in HALF else argument


def _wide_value(value: Any) -> Any:
    """A value's metadata in float32. Nothing is run, so its shape stays as symbolic as it was."""
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in HALF else value


def _attributes(module: fx.GraphModule, nodes: list[fx.Node]) -> dict[str, torch.Tensor]:
    """All tensors of a module, used or not, and the constants of its graph."""
    found = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for node in nodes:
        if node.op == "get_attr" and node.target not in found:
            value = operator.attrgetter(str(node.target))(module)
            if isinstance(value, torch.Tensor):
                found[str(node.target)] = value
    return found


def _values(node: fx.Node) -> list[torch.Tensor]:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [item for item in values if isinstance(item, torch.Tensor)]
