"""An encoder as an exported graph, and its cut candidates.

Cuts are found in the ATen graph of `torch.export`, never in a hand-written list of blocks. A node is a cut candidate
if it is the only data tensor alive after it; values that depend on parameters or constants alone do not count, nor do
sizes that can be read off the crossing tensor.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, free_unbacked_symbols
from torch.utils._pytree import tree_leaves

from runtime_edge.errors import UsageError
from streamsplit_compile.encoder.functional import make_functional, reads_through_views
from streamsplit_compile.encoder.plain_graph import HALF, make_plain
from streamsplit_compile.encoder.prepend import PrependedFrontEnd, prepend
from streamsplit_compile.encoder.quiet import quiet
from streamsplit_compile.encoder.source_lines import line_of_error, with_line
from streamsplit_compile.encoder.tracing import check_arguments, exported

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A point of the graph that exactly one tensor crosses."""

    position: int
    """0 for the input waveform; it counts up in topological order."""
    node: str
    """Name of the graph node whose value crosses."""
    name: str
    """The module that it follows, for example `layer4.0`."""
    shape: tuple[int, ...]
    """The activation's shape, with a batch axis of 1."""
    boundary: bool
    """Whether it is at the end of one of the user's modules or of the front end, not inside."""

    @property
    def values(self) -> int:
        """Number of values in the activation of one window."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class EncoderGraph:
    """The exported encoder: one input (batch, samples), one output (batch, d)."""

    module: fx.GraphModule
    """Parameters keep the names of the user's module."""
    candidates: tuple[Candidate, ...]
    """First the waveform, last the embedding."""
    dynamic_batch: bool

    def node(self, name: str) -> fx.Node:
        """The graph node of that name. Raises UsageError."""
        found: fx.Node | None = next((node for node in self.module.graph.nodes if node.name == name), None)
        if found is not None:
            return found
        raise UsageError(f"the encoder's graph has no node {name!r}; was the bundle compiled from this encoder?")


def export_encoder(
    module: torch.nn.Module, window_samples: int, front_end: PrependedFrontEnd | None = None
) -> EncoderGraph:
    """Export an encoder that takes (batch, window_samples) float32, and find where it can be cut.

    With a front end, the encoder takes its features, and both are in the graph. The batch stays dynamic if the encoder
    allows it, so that the server can batch. Raises UsageError with the reason when the encoder cannot be exported or
    does not return one (batch, d) float32 tensor.
    """
    module = module.eval()
    check_arguments(module)
    shape = (window_samples,) if front_end is None else front_end.shape
    try:
        program = exported(module, shape)
    except Exception as exc:
        if not any(getattr(value, "dtype", None) in HALF for value in module.state_dict().values()):
            raise _refused(exc) from exc
        # The encoder takes activations in the type of its weights, which are made float32 here (see plain_graph).
        try:
            program = exported(copy.deepcopy(module).float(), shape)
        except Exception as wide_exc:
            raise _refused(wide_exc) from exc
    return graph_of_program(program, front_end)


def _refused(exc: Exception) -> UsageError:
    text = str(exc).strip()
    reason = text.splitlines()[0][:300] if text else type(exc).__name__
    where = line_of_error(exc)
    if isinstance(exc, GuardOnDataDependentSymNode):
        reason = (
            "it computes differently depending on values of tensors; use torch.where in place of `if` on values, and "
            "sizes that are the same for every window"
        )
    return UsageError(f"the encoder cannot be exported by torch.export: {f'{where}: ' if where else ''}{reason}")


def graph_of_program(program: torch.export.ExportedProgram, front_end: PrependedFrontEnd | None = None) -> EncoderGraph:
    """The graph of a program that was exported elsewhere. Raises UsageError naming the node that prevents it."""
    module = _plain(program)
    _check_signature(module, front_end)
    if reads_through_views(module.graph):
        with quiet():
            program = program.run_decompositions({})
        module = _plain(program)
    make_functional(module)
    if front_end is not None:
        prepend(module, front_end)
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    dynamic = not isinstance(inputs[0].meta["val"].shape[0], int)
    candidates = tuple(_mark_front_end(_find_candidates(module.graph), module))
    if len(candidates) < 2:
        (output,) = [node for node in module.graph.nodes if node.op == "output"]
        returned = output.all_input_nodes == inputs
        reason = "returns its input" if returned else "gives an embedding that does not depend on the waveform"
        raise UsageError(f"the encoder {reason}; there is nothing to compile")
    return EncoderGraph(module, candidates, dynamic)


def ignores_waveform(encoder: EncoderGraph) -> bool:
    """Whether three very different windows give the same embedding."""
    rows = encoder.candidates[0].shape
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(rows, generator=generator) * 2 - 1
    with torch.inference_mode():
        windows = (noise, noise.flip(1) / 100, torch.zeros(rows))
        # An encoder may return its embedding in a dictionary or a tuple.
        first, *others = (tree_leaves(encoder.module(window))[0] for window in windows)
    return all(torch.equal(first, other) for other in others)


def _plain(program: torch.export.ExportedProgram) -> fx.GraphModule:
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    make_plain(module)
    return module


def input_shape(program: torch.export.ExportedProgram) -> tuple[int, ...] | None:
    """Shape of a program's input without the batch axis; None if it takes several inputs, or one whose shape is not
    fixed.
    """
    values = [node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    if len(values) != 1 or not isinstance(values[0], torch.Tensor):
        return None
    sizes = tuple(values[0].shape[1:])
    return sizes if all(isinstance(size, int) for size in sizes) else None


def _check_signature(module: fx.GraphModule, front_end: PrependedFrontEnd | None) -> None:
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    taken = "waveform" if front_end is None else "features"
    if len(inputs) != 1:
        raise UsageError(f"the encoder takes {len(inputs)} inputs ({inputs}); it must take only the {taken}")
    (name, value), wanted = (inputs[0].name, inputs[0].meta["val"]), "(batch, samples)"
    if front_end is not None:
        wanted = f"({', '.join(map(str, ('batch', *front_end.shape)))}), which the front end makes"
    tensor = isinstance(value, torch.Tensor) and value.dtype == torch.float32
    fits = tensor and (value.dim() == 2 if front_end is None else tuple(value.shape[1:]) == front_end.shape)
    if not fits:
        hint = "; --front-end PRESET|preprocessor_config.json makes spectrograms" if tensor and value.dim() > 2 else ""
        raise UsageError(f"input {name}: expected float32 {wanted}, got {_describe(value)}{hint}")
    batch, *sizes = value.shape
    if not all(isinstance(size, int) for size in sizes) or (isinstance(batch, int) and batch != 1):
        raise UsageError(
            f"input {name}: exported for {_describe(value)}; export with a batch of 1 or a dynamic one, "
            "and a fixed number of samples"
        )
    (output,) = [node for node in module.graph.nodes if node.op == "output"]
    values = output.args[0] if isinstance(output.args[0], (tuple, list)) else (output.args[0],)
    tensors = [value for value in values if isinstance(value, fx.Node)]
    if len(tensors) != 1:
        raise UsageError(f"the encoder returns {len(tensors)} values ({tensors}); wrap it to return the embedding")
    embedding = tensors[0].meta["val"]
    shaped = isinstance(embedding, torch.Tensor) and embedding.dim() == 2 and embedding.dtype == torch.float32
    # Sizes are compared as text: comparing symbols would add a guard to the graph.
    if not shaped or str(embedding.shape[0]) != str(batch):
        raise UsageError(
            f"output {tensors[0].name}: expected a float32 embedding (batch, d), got {_describe(embedding)}"
        )
    for node in module.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            _check_repeatable(node, node.target)
            _check_fixed_size(node)


def _check_fixed_size(node: fx.Node) -> None:
    """Raise UsageError for a value whose size depends on the content of the waveform."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and free_unbacked_symbols(value):
        raise UsageError(
            f"{with_line(node)}: its size depends on values of the waveform; use the same sizes for every window"
        )


_TRAINING_SWITCHES = ("train", "training", "dropout_p")


def _check_repeatable(node: fx.Node, operator: torch._ops.OpOverload) -> None:
    """Raise UsageError for an operator that gives another result each time, or in training."""
    for position, argument in enumerate(operator._schema.arguments):
        if argument.name in _TRAINING_SWITCHES:
            given = dict(enumerate(node.args)).get(position, argument.default_value)
            if node.kwargs.get(argument.name, given):
                raise UsageError(
                    f"{with_line(node)}: works as in training; call .eval() before torch.export, and give functions "
                    "training=self.training"
                )
            return
    if torch.Tag.nondeterministic_seeded in operator.tags:
        raise UsageError(
            f"{with_line(node)}: draws random numbers; an encoder must give the same embedding for the same waveform"
        )


_CASTS = (torch.ops.aten.to.dtype, torch.ops.aten.to.dtype_layout, torch.ops.aten.to.device)
_RESHAPES = (
    torch.ops.aten.unsqueeze.default,
    torch.ops.aten.squeeze.dim,
    torch.ops.aten.transpose.int,
    torch.ops.aten.permute.default,
    torch.ops.aten.view.default,
    torch.ops.aten.reshape.default,
    torch.ops.aten.contiguous.default,
    *_CASTS,
)


def _find_candidates(graph: fx.Graph) -> list[Candidate]:
    """Find the cut candidates by scanning live tensors in topological order."""
    nodes = list(graph.nodes)
    order = {node: index for index, node in enumerate(nodes)}
    ends = _module_ends(nodes)
    live: set[fx.Node] = set()
    data: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    taken: set[str] = set()
    found: list[Candidate] = []
    (result,) = nodes[-1].all_input_nodes[:1]
    for index, node in enumerate(nodes):
        if node.op == "output":
            break
        if node.op == "placeholder" or data.intersection(node.all_input_nodes):
            data.add(node)
            live.add(node)
        live = {value for value in live if any(order[user] > index for user in value.users)}
        crossing = _single_tensor(_wanted(live, order, index))
        if crossing is None or crossing in seen:
            continue
        seen.add(crossing)
        if _is_idle(crossing):
            if crossing is not result:
                continue
            if found and found[-1].node == crossing.all_input_nodes[0].name:
                found.pop()
        followed = "waveform" if crossing.op == "placeholder" else _followed_module(crossing, order[crossing], ends)
        name = followed or _place(crossing)
        shape = tuple(_static(size) for size in crossing.meta["val"].shape)
        found.append(Candidate(len(found), crossing.name, _unique(name, taken), shape, followed is not None))
    return found


def _mark_front_end(candidates: list[Candidate], module: fx.GraphModule) -> list[Candidate]:
    """The candidates, with the end of the front end marked as a boundary.

    A front end is the first part, without trained parameters. Log-mels computed in the forward() of a larger module do
    not end at a module's end.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    untrained = _untrained(module)
    before = [item for item in candidates[1:-1] if nodes[item.node] in untrained]
    while len(before) > 1 and nodes[before[-1].node].target in _RESHAPES:
        before.pop()
    if not before or len(before) == len(candidates) - 2 or before[-1].values >= candidates[0].values:
        return candidates
    return [dataclasses.replace(item, boundary=item.boundary or item is before[-1]) for item in candidates]


def _untrained(module: fx.GraphModule) -> set[fx.Node]:
    """The nodes that depend on no parameter."""
    parameters = dict(module.named_parameters())
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        if not (node.op == "get_attr" and node.target in parameters) and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def _is_idle(node: fx.Node) -> bool:
    """Whether a node casts to the type that its input already has: a block of it would be empty."""
    if node.target not in _CASTS:
        return False
    source = node.all_input_nodes[0].meta["val"]
    return bool(source.dtype == node.meta["val"].dtype)


def _wanted(live: set[fx.Node], order: dict[fx.Node, int], index: int) -> set[fx.Node]:
    """The live values; a tensor of which only sizes are still used is replaced by those sizes."""
    wanted = set()
    for value in live:
        users = {user for user in value.users if order[user] > index}
        wanted |= {value} if is_size(value) or not all(map(is_size, users)) else users
    return wanted


def _single_tensor(live: set[fx.Node]) -> fx.Node | None:
    """The one float32 tensor, batch first, from which every other live value (sizes) can be read; else None."""
    tensors = [value for value in live if not is_size(value)]
    if len(tensors) != 1:
        return None
    value = tensors[0].meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or value.dim() < 1:
        return None
    if any(size_in(size.meta["val"], tensors[0]) is None for size in live if is_size(size)):
        return None
    symbols = [bool(getattr(size, "node", None)) for size in value.shape]
    return None if any(symbols[1:]) else tensors[0]


def is_size(node: fx.Node) -> bool:
    """Whether a node's value is an integer (a size that depends on the batch), not a tensor."""
    return isinstance(node.meta.get("val"), (int, torch.SymInt))


def size_in(size: Any, tensor: fx.Node) -> int | None:
    """K such that `size == tensor.shape[0] // k` or, if k < 0, `tensor.shape[0] * -k`; None if there is none."""
    first = tensor.meta["val"].shape[0]
    if isinstance(size, int) or isinstance(first, int):
        return None
    ratio = first.node.expr / size.node.expr
    if ratio.is_Integer:
        return int(ratio)
    return -int(1 / ratio) if (1 / ratio).is_Integer else None


def _module_ends(nodes: list[fx.Node]) -> dict[str, int]:
    """The position of each module path's last node."""
    ends: dict[str, int] = {}
    for index, node in enumerate(nodes):
        if node.op == "call_function":
            for path in _module_paths(node):
                ends[path] = index
    return ends


def _module_paths(node: fx.Node) -> list[str]:
    """Paths of the modules that a node was traced in, outermost first, without the root."""
    stack = node.meta.get("nn_module_stack") or {}
    return [path.split("@")[0] for path, _ in stack.values() if path]


def _followed_module(node: fx.Node, position: int, ends: dict[str, int]) -> str | None:
    """The outermost module that ends at this node; None if none does."""
    return next((path for path in _module_paths(node) if ends[path] <= position), None)


def _place(node: fx.Node) -> str:
    """A name for the position of a node inside a module."""
    paths = _module_paths(node)
    return f"{paths[-1]}.{node.name}" if paths else node.name


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}~{count}"
    taken.add(candidate)
    return candidate


def _static(size: Any) -> int:
    """A size with the batch set to 1 (the example was exported with a batch of 2 or 1)."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(str(size) if isinstance(size, int) else "batch" for size in value.shape)
        return f"{str(value.dtype).removeprefix('torch.')} ({sizes})"
    return type(value).__name__
