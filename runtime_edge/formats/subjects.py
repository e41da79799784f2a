"""Names on the broker that devices and servers agree on."""

from __future__ import annotations

import base64
import re
import secrets
import zlib

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

REPLY_HEADER = "Ssc-Reply"
MESSAGE_ID_HEADER = "Nats-Msg-Id"
STREAM_HEADER = "Nats-Expected-Stream"
"""Which stream a message is for: another one that takes its subject refuses it."""

_DEVICE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_REPLY = re.compile(r"[A-Za-z0-9]{1,64}\.[0-9]{1,20}")
_BOOT = re.compile(r"[a-z0-9-]{1,32}")
_BOOT_BYTES = 10


def is_device(text: str) -> bool:
    """Whether this can be a device's name."""
    return _DEVICE.fullmatch(text) is not None


def is_boot(text: str) -> bool:
    """Whether this can be the token of one run of a device."""
    return _BOOT.fullmatch(text) is not None


def new_boot() -> str:
    """A token for one run of a device: 80 random bits, 16 characters.

    Another device that guessed it could send frames under this one's message ids, and the broker, which drops
    repetitions whoever sends them, would drop this one's own.
    """
    return base64.b32encode(secrets.token_bytes(_BOOT_BYTES)).decode().lower()


def check_device(device: str) -> str:
    """Return a device name that can stand in a subject. Raises UsageError."""
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
    """Prefix of the subjects a device is answered on: nobody else may subscribe below it."""
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
    """Identity of one window: the broker and the server drop repetitions of it."""
    return f"{device}.{boot}.{window}"


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
