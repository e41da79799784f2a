"""Turns an exporter's error into one line that names the line of the user's code."""

from __future__ import annotations

import re

import torch
from torch import fx

from runtime_edge.errors import UsageError
from streamsplit_compile.encoder.source_lines import with_line

_NODE = re.compile(r"%(\w+) : \[num_users|Name: node_(\w+)|node ['\"]?(\w+)['\"]?")
_OPERATOR = re.compile(r"OpOverload\(op='\w+\.(\w+)'")
_WITHOUT_FORM = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")
_SUMMARY = re.compile(r"## Exception summary\s+(?:<class '[\w.]+'>: )?(.+)")
_SHORT_NAME = 4
"""Operator names up to this length (add, mul) occur in too many other names."""
_NOISE = re.compile(r"\x1b\[\d+m|Failed to \w+ the \w+ graph.*|This is step.*|- Create an .*")


def refusal(exporter: str, exc: Exception, segment: fx.GraphModule) -> UsageError:
    """The error to raise instead of an exporter's error for a segment."""
    texts = [str(error).strip() for error in _causes(exc)]
    node = _named_node(texts, segment)
    reason = next(filter(None, map(_reason, texts)), type(exc).__name__)
    where = "" if node is None else f"{with_line(node)}: "
    return UsageError(
        f"{exporter} cannot lower this part of the encoder: {where}{reason[:300]}; write it in other operators"
    )


def refuse_projected_lstm(segment: fx.GraphModule) -> None:
    """Raise UsageError naming an LSTM with `proj_size`, whose projection torch.onnx silently drops."""
    for node in segment.graph.nodes:
        if node.target is torch.ops.aten.lstm.input:
            hidden, cell = (state.meta["val"] for state in node.args[1])
            if hidden.shape != cell.shape:
                raise UsageError(
                    f"{with_line(node)}: ONNX has no LSTM that projects its state (proj_size): train the encoder with "
                    "an LSTM without one, or with an nn.Linear behind it"
                )


def _causes(exc: BaseException) -> list[BaseException]:
    """The error and its causes, the first cause first."""
    chain = [exc]
    while (cause := chain[0].__cause__ or chain[0].__context__) is not None:
        chain.insert(0, cause)
    return chain


def _named_node(texts: list[str], segment: fx.GraphModule) -> fx.Node | None:
    nodes: dict[str, fx.Node] = {node.name: node for node in segment.graph.nodes}
    names = [name for text in texts for match in _NODE.finditer(text) for name in match.groups() if name]
    if named := next((nodes[name] for name in names if name in nodes), None):
        return named
    operators = [name for text in texts for name in _OPERATOR.findall(text)]
    return next((node for name in operators for node in nodes.values() if _is_part(name, node)), None)


def _is_part(operator: str, node: fx.Node) -> bool:
    """Whether a node is this operator, or one that was decomposed into it and whose name is part of the operator's."""
    whole = getattr(getattr(node.target, "_schema", None), "name", "").removeprefix("aten::")
    return operator in str(node.target) or (len(whole) > _SHORT_NAME and whole in operator)


def _reason(text: str) -> str:
    if without := _WITHOUT_FORM.search(text):
        return f"it has no form of {without[1]}"
    summary = _SUMMARY.search(text)
    lines = [summary[1]] if summary else [_NOISE.sub("", line).strip() for line in text.splitlines()]
    return next((" ".join(line.split()) for line in lines if line), "")
