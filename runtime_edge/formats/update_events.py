"""The events about updates that a device publishes on `evt.<device>`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from runtime_edge.errors import FormatError
from runtime_edge.formats.strict import decode

MAX_UPDATE_EVENT_BYTES = 16 << 10
UpdateKind = Literal[
    "fetched",
    "generation",
    "proven",
    "retired",
    "update_failed",
    "update_refused",
    "rolled_back",
    "table_refused",
    "head_refused",
    "adapted",
    "adaptation_refused",
]


class UpdateEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One step of an update, or why it was refused; fields that do not belong to the kind are None."""

    event: UpdateKind
    version: Literal[1, 2] = 1
    """Version of this event; 1 if it does not say."""
    device: str
    generation: int | None = None
    """Generation of the bundle that the event is about."""
    digest: str | None = None
    """Digest of that bundle's manifest, `sha256:<hex>`."""
    reason: str | None = None
    """Why an update was refused; 500 characters at most."""
    fetched_bytes: int | None = msgspec.field(default=None, name="bytes")
    """Bytes fetched for assets and patches."""
    assets: int | None = None
    """Files fetched in full."""
    patches: int | None = None
    """Files made from the device's own copy and a patch."""
    oldest: int | None = None
    """The oldest generation whose frames the server still completes."""


_BUNDLE = frozenset({"generation", "digest"})
_REASON = frozenset({"reason"})
_FIELDS: Final[dict[UpdateKind, tuple[frozenset[str], ...]]] = {
    "fetched": (_BUNDLE | {"bytes", "assets", "patches"},),
    "generation": (_BUNDLE,),
    "proven": (_BUNDLE,),
    "retired": (frozenset({"generation", "oldest"}),),
    "update_failed": (_REASON, _REASON | _BUNDLE),
    "update_refused": (_REASON, _REASON | _BUNDLE),
    "rolled_back": (_REASON | _BUNDLE,),
    "table_refused": (_REASON,),
    "head_refused": (_REASON,),
    "adapted": (frozenset({"digest"}),),
    "adaptation_refused": (_REASON,),
}
"""The fields of each kind, besides `event`, `version` and `device`."""


def decode_update_event(data: bytes, source: str = "event") -> UpdateEvent:
    """Read an event about an update, of version 1 or 2.

    Raises FormatError naming `source` and the field, also if a field of the kind is missing or one of another kind is
    present.
    """
    event = decode(data, UpdateEvent, source, MAX_UPDATE_EVENT_BYTES)
    found = frozenset(msgspec.to_builtins(event)) - {"event", "version", "device"}
    if found not in _FIELDS[event.event]:
        expected = " or ".join(", ".join(sorted(fields)) for fields in _FIELDS[event.event])
        raise FormatError(f"{source}: `{event.event}` has {', '.join(sorted(found)) or 'nothing'}; expected {expected}")
    return event
