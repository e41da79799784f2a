"""Inspects an ONNX file before a runtime reads it: one graph of known operators, with its tensors in the file.

The file is a protobuf message. Its fields are walked here without making objects of them: the depth is limited to the
messages named below, the number of fields is bounded, and weights are skipped. An unknown field is refused, so
additions in later versions of ONNX are refused until they have been reviewed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from runtime_edge.errors import BackendError
from runtime_edge.formats.graphs.operators import ONNX_DOMAINS, ONNX_OPERATORS, ONNX_SIZES

MAX_FIELDS = 1 << 18
"""The most fields in one file, all messages together; the blocks of the shipped encoders have some thousands."""
_MAX_DIMENSIONS = 16
_MAX_VARINT_BYTES = 10

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_Span = tuple[int, int]
_Fields = Mapping[int, Collection[int]]
"""Field number -> the allowed ways to encode it."""

_MODEL: _Fields = {1: (_VARINT,), 5: (_VARINT,), **dict.fromkeys((2, 3, 4, 6, 7, 8, 14), (_BYTES,))}
_OPSET: _Fields = {1: (_BYTES,), 2: (_VARINT,)}
_GRAPH: _Fields = dict.fromkeys((1, 2, 5, 10, 11, 12, 13, 16), (_BYTES,))
_NODE: _Fields = dict.fromkeys((1, 2, 3, 4, 5, 6, 7, 9), (_BYTES,))
_ATTRIBUTE: _Fields = {
    **dict.fromkeys((1, 4, 5, 9, 13), (_BYTES,)),
    **dict.fromkeys((3, 20), (_VARINT,)),
    2: (_FIXED32,),
    7: (_FIXED32, _BYTES),
    8: (_VARINT, _BYTES),
}
_TENSOR: _Fields = {
    **dict.fromkeys((8, 9, 12, 16), (_BYTES,)),
    **dict.fromkeys((2, 14), (_VARINT,)),
    **dict.fromkeys((1, 5, 7, 11), (_VARINT, _BYTES)),
    4: (_FIXED32, _BYTES),
    10: (_FIXED64, _BYTES),
}
_VALUES = (4, 5, 7, 9, 10, 11)
"""The fields of a tensor that may hold its values."""
_RAW = 9
_ENTRY: _Fields = dict.fromkeys((1, 2), (_BYTES,))
_REFUSED = {
    "the model": {20: "training", 25: "functions", 26: "several devices"},
    "the graph": {14: "quantisation annotations", 15: "sparse tensors"},
    "a node": {8: "a function", 10: "several devices"},
    "an attribute": {
        **dict.fromkeys((6, 11), "a graph of its own"),
        10: "several tensors",
        **dict.fromkeys((14, 15), "a type"),
        21: "a function",
        **dict.fromkeys((22, 23), "sparse tensors"),
    },
    "a tensor": {3: "segments", 6: "text", 13: "external data"},
}
"""Names of fields that are known but not allowed."""


class StoredTensor(NamedTuple):
    """Where the values of an initializer stand in the file, as little-endian bytes."""

    type: int
    """Number of ONNX's `TensorProto.DataType`."""
    start: int
    stop: int


class OnnxFile(NamedTuple):
    """What a check finds in a file."""

    tensors: dict[str, StoredTensor]
    """The graph's initializers, by name, except those whose values are written one by one."""
    metadata: dict[str, str]


def check_onnx(data: bytes, where: str) -> OnnxFile:
    """Raise BackendError, naming `where` and the reason, unless a device may hand this ONNX file to its runtime."""
    check = _Check(data, where)
    check.model()
    return OnnxFile(check.stored, check.metadata)


class _Check:
    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._where = data, where
        self._fields = 0
        self.stored: dict[str, StoredTensor] = {}
        self.metadata: dict[str, str] = {}

    def model(self) -> None:
        graphs = 0
        for number, value in self._message((0, len(self._data)), _MODEL, "the model"):
            if number == 7:
                graphs += 1
                self._graph(value)
            elif number == 8:
                self._opset(value)
            elif number == 14:
                self._entry(value)
        if graphs != 1:
            raise self._refused(f"{graphs} graphs, expected 1")

    def _entry(self, span: _Span) -> None:
        """Note one entry of the file's metadata."""
        texts = {number: self._text(value) for number, value in self._message(span, _ENTRY, "an entry of metadata")}
        self.metadata[texts.get(1, "")] = texts.get(2, "")

    def _opset(self, span: _Span) -> None:
        for number, value in self._message(span, _OPSET, "an operator set"):
            if number == 1 and (domain := self._text(value)) not in ONNX_DOMAINS:
                raise self._refused(f"it imports operators of {domain!r}")

    def _graph(self, span: _Span) -> None:
        constants: set[str] = set()
        sizes: list[tuple[str, str]] = []
        for number, value in self._message(span, _GRAPH, "the graph"):
            if number == 1:
                self._node(value, constants, sizes)
            elif number == 5:
                name, stored = self._tensor(value)
                constants.add(name)
                if stored is not None:
                    self.stored[name] = stored
        for operator, name in sizes:
            if name and name not in constants:
                raise self._refused(f"{operator} takes its size from {name!r}, which is not in the file")

    def _node(self, span: _Span, constants: set[str], sizes: list[tuple[str, str]]) -> None:
        """Check one node; record the constants it holds and the names of the tensors that determine its output size."""
        texts: dict[int, list[str]] = {1: [], 2: [], 4: [], 7: []}
        for number, value in self._message(span, _NODE, "a node"):
            if number == 5:
                self._attribute(value)
            elif number in texts:
                texts[number].append(self._text(value))
        inputs, outputs, operators, domains = texts.values()
        for domain in domains:
            if domain not in ONNX_DOMAINS:
                raise self._refused(f"an operator of {domain!r}")
        for operator in operators or [""]:
            if operator not in ONNX_OPERATORS:
                raise self._refused(f"operator {operator!r} is not one that a block may use")
            if operator == "Constant":
                constants.update(outputs)
            sizes += [(operator, inputs[at]) for at in ONNX_SIZES.get(operator, ()) if at < len(inputs)]

    def _attribute(self, span: _Span) -> None:
        for number, value in self._message(span, _ATTRIBUTE, "an attribute"):
            if number == 5:
                self._tensor(value)

    def _tensor(self, span: _Span) -> tuple[str, StoredTensor | None]:
        """Check that a tensor's values are in the file; returns its name, and where they stand if in one piece."""
        name, values, dimensions, held, kind = "", 1, 0, 0, 0
        raw: _Span | None = None
        for number, value in self._message(span, _TENSOR, "a tensor"):
            if number == 14 and any(self._varints(value)):
                raise self._refused("a tensor has external data")
            if number == 8:
                name = self._text(value)
            elif number == 2:
                kind = next(self._varints(value), 0)
            elif number == 1:
                for size in self._varints(value):
                    values, dimensions = values * size, dimensions + 1
                    if dimensions > _MAX_DIMENSIONS or values > len(self._data):
                        raise self._refused(f"tensor {name!r} is larger than the file")
            elif number in _VALUES:
                held += max(value[1] - value[0], 1)
                raw = value if number == _RAW else raw
        if values > held:
            raise self._refused(f"tensor {name!r} has {values} values and {held} bytes")
        return name, None if raw is None else StoredTensor(kind, *raw)

    def _varints(self, span: _Span) -> Iterator[int]:
        """The integers of a field: one, or several packed into it."""
        at, stop = span
        while at < stop:
            value, at = self._varint(at, stop)
            yield value

    def _message(self, span: _Span, known: _Fields, what: str) -> Iterator[tuple[int, _Span]]:
        """Field number and byte range of each field of a message."""
        at, stop = span
        while at < stop:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise self._refused(f"more than {MAX_FIELDS} fields")
            tag, at = self._varint(at, stop)
            number, wire = tag >> 3, tag & 7
            if wire not in known.get(number, ()):
                meaning = _REFUSED.get(what, {}).get(number, f"field {number}, written in way {wire}")
                raise self._refused(f"{what} has {meaning}")
            start = at
            if wire == _VARINT:
                _, at = self._varint(at, stop)
            elif wire == _BYTES:
                length, start = self._varint(at, stop)
                at = start + length
            else:
                at += 8 if wire == _FIXED64 else 4
            if at > stop:
                raise self._refused(f"{what} ends early")
            yield number, (start, at)

    def _varint(self, at: int, stop: int) -> tuple[int, int]:
        value = 0
        for place in range(at, min(at + _MAX_VARINT_BYTES, stop)):
            byte = self._data[place]
            value |= (byte & 0x7F) << 7 * (place - at)
            if byte < 0x80:
                return value, place + 1
        raise self._refused("it is damaged")

    def _text(self, span: _Span) -> str:
        return self._data[span[0] : span[1]].decode("utf-8", "backslashreplace")

    def _refused(self, reason: str) -> BackendError:
        return BackendError(f"{self._where}: not a block that a device runs: {reason}")
