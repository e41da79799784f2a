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
"""Header of a frame: `<boot>.<window>` and, if an answer is wanted, `.<connection>.<asked>` (`Envelope`)."""
REPLY_HEADER = "Ssc-Reply"
"""Header of devices of 0.1.0: the subject for the answer."""
IDENTITY_HEADER = "Ssc-Id"
"""Header of devices of 0.1.0, and of frames from another device's spool: the frame's first window, as `message_id`.

Neither of these is the broker's own header for message ids. With that one, the broker would drop a message whose id
another device has used before, and would tell any device the latest id, so a device could get another's next frames
dropped.
"""
BROKER_ID_HEADER = "Nats-Msg-Id"
"""The broker's own header: drops repetitions of what the server writes. Devices of 0.1.0 put their frames' ids here."""

Asked = Literal["everything", "embedding", "trouble"]
"""What answer a device wants. everything: the embedding in float16 and the whole mixture, as devices of 0.1.0 do.
embedding: the embedding in int8, and the components of the mixture that have moved. trouble: the mixture, and why a
frame could not be completed, if that happens; otherwise nothing."""

_ENVELOPE = re.compile(r"([a-z0-9-]{1,32})\.([0-9]{1,20})(?:\.([A-Za-z0-9]{1,64})\.([01]))?")
_DEVICE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_REPLY = re.compile(r"[A-Za-z0-9]{1,64}\.[0-9]{1,20}")
_BOOT = re.compile(r"[a-z0-9-]{1,32}")
_BOOT_CHARACTERS = 12
_CONNECTION_CHARACTERS = 4


def is_device(text: str) -> bool:
    """Whether this is a valid device name."""
    return _DEVICE.fullmatch(text) is not None


def is_boot(text: str) -> bool:
    """Whether this is a valid token for one run of a device."""
    return _BOOT.fullmatch(text) is not None


def new_boot() -> str:
    """A unique token for one run of a device: 60 random bits, 12 characters. Each frame carries it."""
    return _token(_BOOT_CHARACTERS)


def new_connection() -> str:
    """A token for one connection of a device, to tell answers to earlier connections apart."""
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


def clip_requests(device: str) -> str:
    """Subject on which a device that lends its clips is asked for them."""
    return f"{inbox(device)}.clips"


def clips(device: str) -> str:
    """Subject a device publishes pieces of its clips on."""
    return f"clip.{device}"


def filler(device: str) -> str:
    """Subject of filler that measures the link (`transport.bandwidth_probe`). Nobody listens, and nothing is stored."""
    return f"nil.{device}"


def inbox(device: str) -> str:
    """Prefix of the subjects on which a device gets answers: only that device may subscribe below it."""
    return f"_INBOX.{device}"


def is_reply(device: str, subject: str) -> bool:
    """Whether a frame of this device may ask for its answer on this subject: `<inbox>.<connection>.<window>`."""
    prefix = inbox(device) + "."
    return subject.startswith(prefix) and _REPLY.fullmatch(subject, len(prefix)) is not None


def bucket_stream(bucket: str) -> str:
    """The stream behind a key-value bucket."""
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
    """Identity of the frame's first window; empty if it names none."""
    reply: str
    """The subject for the answer; empty if none is wanted, or if the subject is not the device's own."""
    asked: Asked


def envelope(message_id: str, device: str, connection: str = "", embedding: bool = True) -> dict[str, str]:
    """The headers of a frame; with a connection's token, answers go to that connection, under the first window."""
    prefix = f"{device}."
    if not message_id.startswith(prefix):  # from a spool that another device left behind
        return {IDENTITY_HEADER: message_id}
    answer = f".{connection}.{int(embedding)}" if connection else ""
    return {ENVELOPE_HEADER: message_id[len(prefix) :] + answer}


def read_envelope(headers: Mapping[str, str] | None, subject: str) -> Envelope:
    """The metadata of a frame received on a subject; also understands devices of 0.1.0."""
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
    """A random token of this many characters, 5 bits each."""
    return base64.b32encode(secrets.token_bytes(characters)).decode().lower()[:characters]


def table_key(target: str, device: str | None = None) -> str:
    """Key of a splitter table or a head: for all devices of a target, or for one device.

    The owner comes first, because the broker takes permission for `$KV.tables.*` as permission for `$KV.tables.>`.
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
