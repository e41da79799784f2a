"""A device's report about itself. Anybody with the device's credentials may have written it."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta

from runtime_edge.errors import FormatError
from runtime_edge.formats.strict import decode

MAX_REPORT_BYTES = 64 << 10
VERSION: Final = 2
"""Version of reports as devices write them; version 1 had no such field, and is still read."""

_Integer = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Value = bool | _Integer | float | str | None
_Record = _Value | list[_Value] | dict[str, _Value]
_Field = _Value | list[_Record] | dict[str, _Record]
"""Values nested as deep as devices' reports are; anything deeper is not a report."""


def decode_report(data: bytes, source: str) -> dict[str, Any]:
    """A report's fields, of version 1 or 2, with any names but only these types. Raises FormatError naming `source`."""
    report = decode(data, dict[str, _Field], source, MAX_REPORT_BYTES)
    version = report.get("version", 1)
    if type(version) is not int or not 1 <= version <= VERSION:
        raise FormatError(f"{source}: version {str(version)[:20]!r}; this program reads 1 to {VERSION}: update it")
    return report
