"""Inspects a TFLite file before a runtime reads it: one graph of known operators, its tensors in the file.

The file is a flatbuffer: tables that point to one another. Only those that say which operators run and where their
values are get followed; each position is checked against the file, and the number of steps is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator

from runtime_edge.errors import BackendError
from runtime_edge.formats.graphs.operators import TFLITE_OPERATORS, TFLITE_SIZES

MAX_STEPS = 1 << 18
"""The most steps in one file; the blocks of the shipped encoders need some thousands."""
_MAX_FIELDS = 64
"""The most fields of a table."""
_MARK = b"TFL3"
_MAX_TENSOR_VALUES = 1 << 28


def check_tflite(data: bytes, where: str) -> None:
    """Raise BackendError, naming `where` and the reason, unless a device may hand this TFLite file to its runtime."""
    try:
        _Check(data).model()
    except _Refused as exc:
        raise BackendError(f"{where}: not a block that a device runs: {exc}") from None
    except (struct.error, IndexError):
        raise BackendError(f"{where}: not a block that a device runs: it is damaged") from None


class _Refused(Exception):
    """Why a file is refused."""


class _Check:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._steps = 0

    def model(self) -> None:
        if self._data[4:8] != _MARK:
            raise _Refused("not a TFLite file")
        model = self._table(self._offset(0), 8, "the model")
        codes = [self._operator_code(position) for position in self._tables(model.get(1))]
        constants = [self._buffer(position) for position in self._tables(model.get(4))]
        graphs = list(self._tables(model.get(2)))
        if len(graphs) != 1:
            raise _Refused(f"{len(graphs)} graphs, expected 1")
        graph = self._table(graphs[0], 6, "the graph")
        tensors = [self._tensor(position, constants) for position in self._tables(graph.get(0))]
        for position in self._tables(graph.get(3)):
            self._operator(position, codes, tensors)

    def _operator_code(self, position: int) -> str:
        """The name of an operator that the file uses."""
        code = self._table(position, 4, "an operator")
        number = max(self._scalar(code.get(0), "<b"), self._scalar(code.get(3), "<i"))
        if code.get(1) is not None or number not in TFLITE_OPERATORS:
            raise _Refused(f"operator {number} is not one that a block may use")
        return TFLITE_OPERATORS[number]

    def _buffer(self, position: int) -> bool:
        """Whether a buffer holds values, in its table or, as quantisers write them, after all tables in the file."""
        buffer = self._table(position, 3, "a buffer")
        place, offset, size = buffer.get(0), self._scalar(buffer.get(1), "<Q"), self._scalar(buffer.get(2), "<Q")
        if offset <= 1 and size <= 1:  # the format's way to say "in its table"
            return place is not None and self._vector(place, 1)[1] > 0
        if offset <= 1 or offset + size > len(self._data) or place is not None:
            raise _Refused("a buffer outside the file")
        return size > 0

    def _tensor(self, position: int, constants: list[bool]) -> bool:
        """Whether a tensor's values are in the file."""
        tensor = self._table(position, 11, "a tensor")
        if self._scalar(tensor.get(10), "<I"):
            raise _Refused("a tensor has external data")
        values = 1
        for size in self._integers(tensor.get(0)):
            values *= size
            if size < 0 or values > _MAX_TENSOR_VALUES:
                raise _Refused(f"a tensor of more than {_MAX_TENSOR_VALUES} values")
        return constants[self._scalar(tensor.get(2), "<I")]

    def _operator(self, position: int, codes: list[str], constant: list[bool]) -> None:
        operator = self._table(position, 14, "an operator", refused=(5, 9, 10))
        name = codes[self._scalar(operator.get(0), "<I")]
        inputs = list(self._integers(operator.get(1)))
        for at in TFLITE_SIZES.get(name, ()):
            if at < len(inputs) and inputs[at] >= 0 and not constant[inputs[at]]:
                raise _Refused(f"{name} takes its size from a tensor that is not in the file")

    def _table(self, position: int, fields: int, what: str, refused: Collection[int] = ()) -> _Table:
        """A table of which only the first `fields` fields may be present."""
        self._step()
        start = position - self._scalar(position, "<i")
        size = self._scalar(start, "<H")
        if size < 4 or size > 4 + 2 * _MAX_FIELDS or start + size > len(self._data):
            raise _Refused("it is damaged")
        found = struct.unpack_from(f"<{size // 2 - 2}H", self._data, start + 4)
        for index, place in enumerate(found):
            if place and (index >= fields or index in refused):
                raise _Refused(f"{what} has field {index}")
        return _Table(position, found)

    def _tables(self, place: int | None) -> Iterator[int]:
        """Positions of the tables in a vector."""
        if place is not None:
            start, count = self._vector(place, 4)
            for index in range(count):
                self._step()
                yield self._offset(start + 4 * index)

    def _integers(self, place: int | None) -> Iterator[int]:
        if place is not None:
            start, count = self._vector(place, 4)
            for index in range(count):
                self._step()
                yield self._scalar(start + 4 * index, "<i")

    def _vector(self, place: int, size: int) -> tuple[int, int]:
        """Position of a vector's first element, each of `size` bytes, and the number of elements."""
        start = self._offset(place)
        count = self._scalar(start, "<I")
        if start + 4 + size * count > len(self._data):
            raise _Refused("it is damaged")
        return start + 4, count

    def _offset(self, position: int) -> int:
        return position + self._scalar(position, "<I")

    def _scalar(self, position: int | None, form: str) -> int:
        """An integer; 0 if the field is absent."""
        if position is None:
            return 0
        if position < 0:
            raise _Refused("it is damaged")
        value: int = struct.unpack_from(form, self._data, position)[0]
        return value

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise _Refused(f"more than {MAX_STEPS} parts")


class _Table:
    def __init__(self, position: int, fields: tuple[int, ...]) -> None:
        self._position, self._fields = position, fields

    def get(self, index: int) -> int | None:
        """Position of a field; None if it is absent."""
        place = self._fields[index] if index < len(self._fields) else 0
        return self._position + place if place else None
