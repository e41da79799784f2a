"""Names on the broker that devices and servers agree on."""

from __future__ import annotations

import base64
import re
import secrets
import zlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

from runtime_edge.errors import UsageError

STREAM = "ACTIVATIONS"
PARTITIONS = 4
TABLES = "tables"
HEADS = "heads"
ADAPTATIONS = "adaptations"
RELEASES = "releases"
PRESENCE = "presence"
LEARNT = "learnt"
BUNDLES = "bundles"

SIGNING_KEY = "_key"
"""Key in the releases bucket that holds the server's public key, pinned by devices at their first contact."""

ALL_DEVICES = "_all"
"""First part of keys that are for every device; no device can have this name."""

ENVELOPE_HEADER = "S"
"""Of a frame: `<boot>.<window>`, and where an answer is wanted `.<connection>.<asked>` (`Envelope`)."""
REPLY_HEADER = "Ssc-Reply"
"""Of devices of 0.1.0: the subject of the answer."""
IDENTITY_HEADER = "Ssc-Id"
"""Of devices of 0.1.0 and of frames of another device's spool: which window a frame begins with, as `message_id`.

Neither is the broker's own header for this. Under that one, the broker drops a message whose id another device has used
before, and tells any device which id came last, so that one device could have another's next frames dropped.
"""
BROKER_ID_HEADER = "Nats-Msg-Id"
"""The broker's own: it drops repetitions of what the server writes. Devices of 0.1.0 put their frames' ids here."""

Asked = Literal["everything", "embedding", "trouble"]
"""What a device wants to be answered. everything: the embedding in float16 and the whole mixture, as those of 0.1.0 do.
embedding: the embedding in int8, and of the mixture what has moved. trouble: the mixture, and why a frame was not
completed, where that is so; otherwise nothing."""

_ENVELOPE = re.compile(r"([a-z0-9-]{1,32})\.([0-9]{1,20})(?:\.([A-Za-z0-9]{1,64})\.([01]))?")
_DEVICE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_REPLY = re.compile(r"[A-Za-z0-9]{1,64}\.[0-9]{1,20}")
_BOOT = re.compile(r"[a-z0-9-]{1,32}")
_BOOT_CHARACTERS = 12
_CONNECTION_CHARACTERS = 4


def is_device(text: str) -> bool:
    """Whether this can be a device's name."""
    return _DEVICE.fullmatch(text) is not None


def is_boot(text: str) -> bool:
    """Whether this can be the token of one run of a device."""
    return _BOOT.fullmatch(text) is not None


def new_boot() -> str:
    """A token for one run of a device, unlike any other: 60 random bits, 12 characters. Each frame carries it."""
    return _token(_BOOT_CHARACTERS)


def new_connection() -> str:
    """A token for one connection of a device, which distinguishes answers to earlier connections."""
    return _token(_CONNECTION_CHARACTERS)


def check_device(device: str) -> str:
    """Return a device name that is valid in a subject. Raises UsageError."""
    if not is_device(device):
        raise UsageError(f"device {device!r}: use lower-case letters, digits and '-', 63 characters at most")
    return device


def frames(device: str) -> str:
    """Subject a device publishes its frames on."""
    return f"act.{partition(device)}.{device}"


def partition(device: str) -> int:
    """Partition of the stream that a device belongs to."""
    return zlib.crc32(device.encode()) % PARTITIONS


def partition_filter(index: int) -> str:
    """Subject filter of one partition."""
    return f"act.{index}.>"


def events(device: str) -> str:
    """Subject of a device's events (results, updates, failures)."""
    return f"evt.{device}"


def filler(device: str) -> str:
    """Subject of filler that measures the link (`transport.bandwidth_probe`). Nobody listens and nothing is stored."""
    return f"nil.{device}"


def inbox(device: str) -> str:
    """Prefix of the subjects on which a device is answered: only that device may subscribe below it."""
    return f"_INBOX.{device}"


def is_reply(device: str, subject: str) -> bool:
    """Whether a frame of this device may ask to be answered on this subject: `<inbox>.<connection>.<window>`."""
    prefix = inbox(device) + "."
    return subject.startswith(prefix) and _REPLY.fullmatch(subject, len(prefix)) is not None


def bucket_stream(bucket: str) -> str:
    """Stream behind a key-value bucket."""
    return f"KV_{bucket}"


def bucket_subject(bucket: str, key: str) -> str:
    """Subject on which a key of a bucket is stored."""
    return f"$KV.{bucket}.{key}"


def news(bucket: str, key: str) -> str:
    """Subject on which the broker repeats each value of a key once it is stored."""
    return f"news.{bucket}.{key}"


def message_id(device: str, boot: str, window: int) -> str:
    """Identity of one window: the server counts it once, however often it arrives."""
    return f"{device}.{boot}.{window}"


class Envelope(NamedTuple):
    """A frame's metadata on the broker."""

    message_id: str
    """Of the window that the frame begins with; empty when it names none."""
    reply: str
    """The subject of the answer; empty when none is wanted, or it would not be the device's."""
    asked: Asked


def envelope(message_id: str, device: str, connection: str = "", embedding: bool = True) -> dict[str, str]:
    """The headers of a frame of this device; with a connection's token it is answered there, under its first window."""
    prefix = f"{device}."
    if not message_id.startswith(prefix):  # a spool that another device has left
        return {IDENTITY_HEADER: message_id}
    answer = f".{connection}.{int(embedding)}" if connection else ""
    return {ENVELOPE_HEADER: message_id[len(prefix) :] + answer}


def read_envelope(headers: Mapping[str, str] | None, subject: str) -> Envelope:
    """The metadata of a frame that came on a subject, also from a device of 0.1.0."""
    found, device = headers or {}, subject.rsplit(".", 1)[-1]
    text = found.get(ENVELOPE_HEADER)
    if text is None:
        reply = found.get(REPLY_HEADER, "")
        named = found.get(IDENTITY_HEADER) or found.get(BROKER_ID_HEADER, "")
        return Envelope(named, reply if is_reply(device, reply) else "", "everything")
    match = _ENVELOPE.fullmatch(text)
    if match is None:
        return Envelope("", "", "trouble")
    boot, window, connection, asked = match.groups()
    reply = f"{inbox(device)}.{connection}.{window}" if connection else ""
    return Envelope(f"{device}.{boot}.{window}", reply, "embedding" if asked == "1" else "trouble")


def _token(characters: int) -> str:
    """Of 5 random bits each."""
    return base64.b32encode(secrets.token_bytes(characters)).decode().lower()[:characters]


def table_key(target: str, device: str | None = None) -> str:
    """Key of a splitter table or a head: for all devices of a target, or for one device.

    The owner comes first, because a right to `$KV.tables.*` would be taken by the broker for one to `$KV.tables.>`.
    """
    return f"{device or ALL_DEVICES}.{target}"


def asset_object(reference: str) -> str:
    """Object name of an asset `sha256:<hex>/<name>`."""
    return f"assets/{reference.replace(':', '-')}"


def manifest_object(digest: str) -> str:
    """Object name of a manifest by its digest."""
    return f"manifests/{digest.replace(':', '-')}"


def patch_object(old: str, new: str) -> str:
    """Object name of the patch that turns one asset into another, both `sha256:<hex>/<name>`."""
    return f"patches/{old.split('/')[0]}..{new.split('/')[0]}".replace(":", "-")
