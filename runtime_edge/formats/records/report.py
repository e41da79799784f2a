"""What a device says of itself. Whoever has the device's credentials may have written it."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from runtime_edge.formats.strict import decode

MAX_REPORT_BYTES = 64 << 10

_Integer = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Value = bool | _Integer | float | str | None
_Record = _Value | list[_Value] | dict[str, _Value]
_Field = _Value | list[_Record] | dict[str, _Record]
"""As deep as devices' reports are: what goes deeper is not one."""


def decode_report(data: bytes, source: str) -> dict[str, Any]:
    """A report's fields, of any name and of these types. Raises FormatError naming `source`."""
    return decode(data, dict[str, _Field], source, MAX_REPORT_BYTES)
