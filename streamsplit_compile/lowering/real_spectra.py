"""Fourier transforms as real convolutions and products, for formats without complex numbers.

    real_spectra(segment)     the same function, or the segment itself if it has no transform
    odd_spectra(segment)      the same, but only if a transform's length is not a power of two

A complex value becomes two real ones. Short-time transforms become strided convolutions with a fixed basis times the
window, others a product with a basis; bases are computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from runtime_edge.errors import UsageError
from streamsplit_compile.encoder.source_lines import with_line

aten = torch.ops.aten

Pair = tuple[fx.Node, fx.Node]
"""Real and imaginary part."""
_SAME_ON_BOTH = (
    *(aten.view.default, aten.reshape.default, aten.transpose.int, aten.permute.default, aten.unsqueeze.default),
    *(aten.squeeze.dim, aten.slice.Tensor, aten.select.int, aten.clone.default, aten.contiguous.default),
    *(aten.detach.default, aten.flatten.using_ints, aten.constant_pad_nd.default, aten.neg.default),
    *(aten.narrow.default, aten.movedim.int, aten.swapaxes.default, aten.mean.dim, aten.sum.dim_IntList),
)


def real_spectra(segment: fx.GraphModule) -> fx.GraphModule:
    """A copy without complex values that shares the segment's tensors. Raises UsageError if it has no real form."""
    if not any(_is_complex(node) for node in segment.graph.nodes):
        return segment
    writer = _Writer(segment)
    for node in segment.graph.nodes:
        writer.write(node)
    writer.graph.eliminate_dead_code()
    writer.graph.lint()
    result = fx.GraphModule(writer.root, writer.graph)
    result.meta.update(segment.meta)
    return result


def odd_spectra(segment: fx.GraphModule) -> fx.GraphModule:
    """`real_spectra` of a segment with a transform whose length is not a power of two; other segments unchanged.

    A runtime's own transform computes such a length by several longer transforms, with a hundred times the error.
    """
    if all(size & (size - 1) == 0 for size in map(_length, segment.graph.nodes)):
        return segment
    try:
        return real_spectra(segment)
    except UsageError:
        return segment


def _length(node: fx.Node) -> int:
    """Length of a node's transform; 0 if the node is none."""
    if node.target not in _TRANSFORMS:
        return 0
    source: Any = node.args[0]
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("n")
    length = source.meta["val"].shape[-1] if given is None else given
    return length if isinstance(length, int) else 0


class _Writer:
    """Copies a graph node by node, complex values as pairs."""

    def __init__(self, segment: fx.GraphModule) -> None:
        self.graph = fx.Graph()
        self.root: dict[str, Any] = {
            str(node.target): _attribute(segment, str(node.target))
            for node in segment.graph.nodes
            if node.op == "get_attr"
        }
        self._real: dict[fx.Node, fx.Node] = {}
        self._pairs: dict[fx.Node, Pair] = {}

    def write(self, node: fx.Node) -> None:
        """Copy a node, or write its real replacement."""
        if not _is_complex(node) and not any(used in self._pairs for used in node.all_input_nodes):
            self._real[node] = self.graph.node_copy(node, self._real.__getitem__)
        elif node.target in _TRANSFORMS:
            self._pairs[node] = _TRANSFORMS[node.target](self, node)
        elif node.target in _SAME_ON_BOTH:
            self._pairs[node] = self._both(node)
        elif node.target in _COMPLEX:
            self._pairs[node] = _COMPLEX[node.target](self, node)
        elif node.target in _TO_REAL:
            result = self._real[node] = _TO_REAL[node.target](self, self._pairs[node.args[0]])  # type: ignore[index]
            result.meta = dict(node.meta)
        else:
            raise UsageError(
                f"{with_line(node)}: {node.target} of complex numbers has no form in TFLite; write it with real ones"
            )

    def stft(self, node: fx.Node) -> Pair:
        """A convolution of (batch, samples) or (samples,): (..., bins, frames) for each part."""
        names = ("input", "n_fft", "hop", "win", "window", "normalized", "onesided", "return_complex")
        given: dict[str, Any] = dict(zip(names, node.args, strict=False))
        size, source = given["n_fft"], node.args[0]
        hop = given.get("hop") or size // 4
        bins = size if given.get("onesided") is False else size // 2 + 1
        scale = size**-0.5 if given.get("normalized") else 1.0
        kernel = self._constant(_basis(size, bins) * scale)
        if given.get("window") is not None:
            length = given.get("win") or size
            window = self._call(aten.constant_pad_nd.default, self._real[given["window"]], _centred(length, size))
            kernel = self._call(aten.mul.Tensor, kernel, window)
        elif (given.get("win") or size) != size:
            kernel = self._call(aten.mul.Tensor, kernel, self._constant(_boxcar(given["win"], size)))
        kernel = self._call(aten.unsqueeze.default, kernel, 1)
        flat = source.meta["val"].dim() == 1  # type: ignore[union-attr]
        signal = self._call(aten.unsqueeze.default, self._real[source], 0 if flat else 1)  # type: ignore[index]
        spectra = self._call(aten.conv1d.default, signal, kernel, None, [hop])
        axis = 0 if flat else 1
        return (
            self._call(aten.slice.Tensor, spectra, axis, 0, bins),
            self._call(aten.slice.Tensor, spectra, axis, bins, 2 * bins),
        )

    def rfft(self, node: fx.Node) -> Pair:
        """A product over the last axis."""
        given: dict[str, Any] = {
            "n": None,
            "dim": -1,
            "norm": None,
            **dict(zip(("n", "dim", "norm"), node.args[1:], strict=False)),
        }
        length, axis, norm = {**given, **node.kwargs}.values()
        source: Any = node.args[0]
        shape = source.meta["val"].shape
        if (
            axis not in (-1, len(shape) - 1)
            or norm not in (None, "backward", "ortho")
            or not isinstance(shape[-1], int)
        ):
            raise UsageError(f"node {node.name}: only transforms over the last axis have a form in TFLite")
        size = length if isinstance(length, int) else shape[-1]
        bins = size // 2 + 1
        basis = _basis(size, bins)[:, : shape[-1]] * (size**-0.5 if norm == "ortho" else 1.0)
        signal = self._real[source]
        if shape[-1] > size:
            signal = self._call(aten.slice.Tensor, signal, len(shape) - 1, 0, size)
        real, imaginary = (self._constant(part.T.contiguous()) for part in (basis[:bins], basis[bins:]))
        return self._call(aten.matmul.default, signal, real), self._call(aten.matmul.default, signal, imaginary)

    def absolute(self, pair: Pair) -> fx.Node:
        """Magnitude."""
        return self._call(aten.sqrt.default, self.power(pair))

    def power(self, pair: Pair) -> fx.Node:
        """Squared magnitude."""
        squares = [self._call(aten.mul.Tensor, part, part) for part in pair]
        return self._call(aten.add.Tensor, *squares)

    def stacked(self, pair: Pair) -> fx.Node:
        """Both parts along a new last axis."""
        return self._call(aten.stack.default, list(pair), -1)

    def angle(self, pair: Pair) -> fx.Node:
        """Phase."""
        return self._call(aten.atan2.default, pair[1], pair[0])

    def conjugate(self, node: fx.Node) -> Pair:
        """Negate the imaginary part."""
        real, imaginary = self._pair(node.args[0])
        return real, self._call(aten.neg.default, imaginary)

    def unchanged(self, node: fx.Node) -> Pair:
        """Keep the value: torch uses the node only for its own bookkeeping."""
        return self._pair(node.args[0])

    def product(self, node: fx.Node) -> Pair:
        """(a + bi)(c + di), or with a real factor."""
        left, right = node.args[:2]
        if node.target is aten.div.Tensor and right in self._pairs:
            raise UsageError(f"node {node.name}: division by complex numbers has no form in TFLite")
        if right in self._pairs and left in self._pairs:
            (a, b), (c, d) = self._pair(left), self._pair(right)
            products = [self._call(aten.mul.Tensor, *factors) for factors in ((a, c), (b, d), (a, d), (b, c))]
            return self._call(aten.sub.Tensor, *products[:2]), self._call(aten.add.Tensor, *products[2:])
        if left not in self._pairs:
            left, right = right, left
        factor = self._real[right] if isinstance(right, fx.Node) else right
        real, imaginary = self._pair(left)
        return self._call(node.target, real, factor), self._call(node.target, imaginary, factor)

    def _both(self, node: fx.Node) -> Pair:
        first, second = self._pair(node.args[0])

        def on(part: fx.Node) -> fx.Node:
            rest = fx.map_arg(node.args[1:], self._real.__getitem__)
            return self.graph.call_function(node.target, (part, *rest), dict(node.kwargs))  # type: ignore[arg-type]

        return on(first), on(second)

    def _pair(self, value: Any) -> Pair:
        return self._pairs[value]

    def _call(self, target: Any, *args: Any) -> fx.Node:
        return self.graph.call_function(target, args)

    def _constant(self, value: torch.Tensor) -> fx.Node:
        name = f"spectral_basis_{len(self.root)}"
        self.root[name] = value.float()
        return self.graph.get_attr(name)


def _basis(size: int, bins: int) -> torch.Tensor:
    """(2 * bins, size) float64: cosines, then negative sines."""
    # Whole turns are removed first, so that angles are exact.
    turns = torch.outer(torch.arange(bins), torch.arange(size)).remainder(size).double() * (2 * torch.pi / size)
    return torch.cat([turns.cos(), -turns.sin()])


def _centred(length: int, size: int) -> list[int]:
    left = (size - length) // 2
    return [left, size - length - left]


def _boxcar(length: int, size: int) -> torch.Tensor:
    return torch.nn.functional.pad(torch.ones(length), _centred(length, size))


def _is_complex(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_complex()


def _attribute(segment: fx.GraphModule, name: str) -> Any:
    value: Any = segment
    for part in name.split("."):
        value = getattr(value, part)
    return value


_TRANSFORMS: dict[Any, Callable[[_Writer, fx.Node], Pair]] = {
    aten.stft.default: _Writer.stft,
    aten.fft_rfft.default: _Writer.rfft,
}
_COMPLEX: dict[Any, Callable[[_Writer, fx.Node], Pair]] = {
    aten._conj.default: _Writer.conjugate,
    aten.conj.default: _Writer.conjugate,
    aten.resolve_conj.default: _Writer.unchanged,
    aten.resolve_neg.default: _Writer.unchanged,
    aten.mul.Tensor: _Writer.product,
    aten.div.Tensor: _Writer.product,
}
_TO_REAL: dict[Any, Callable[[_Writer, Pair], fx.Node]] = {
    aten.abs.default: _Writer.absolute,
    aten.view_as_real.default: _Writer.stacked,
    aten.angle.default: _Writer.angle,
    aten.real.default: lambda writer, pair: pair[0],
    aten.imag.default: lambda writer, pair: pair[1],
}
