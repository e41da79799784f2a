"""Publishes what devices fetch from the object store (assets, manifests, patches), and removes what is no longer
needed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Iterable
from datetime import datetime, timezone

import nats.js.errors
from nats.js.api import ObjectInfo
from nats.js.object_store import ObjectStore

from runtime_edge.errors import FormatError
from runtime_edge.formats import manifest as manifests
from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.patch import make_patch
from runtime_edge.formats.records import release as releases
from runtime_edge.formats.records.envelope import open_record
from runtime_server.broker.bucket_keys import bucket_keys
from runtime_server.broker.hub import Hub, raises_link_error

_GRACE_S = 120.0
"""Objects put more recently than this may belong to a bundle that is about to be released."""


@raises_link_error
async def publish_patches(hub: Hub, old: Bundle, new: Bundle) -> dict[str, int]:
    """Store a patch for each device file of `new` that replaces another one in `old`, if the patch is smaller.

    Returns, by variant, the bytes that a device with `old` fetches for `new`.
    """
    store = await hub.stream.object_store(subjects.BUNDLES)
    cost: dict[str, int] = {}
    for variant in new.manifest.variants:
        before = old.manifest.device_files(variant) if variant in old.manifest.variants else {}
        cost[variant] = 0
        for name, (file, size) in new.manifest.device_files(variant).items():
            earlier, _ = before.get(name, (None, 0))
            if earlier is not None:
                size = 0 if earlier == file else min(size, await _patch(store, old, earlier, new, file))
            cost[variant] += size
    return cost


@raises_link_error
async def prune(hub: Hub, kept: Iterable[Bundle], grace_s: float = _GRACE_S) -> int:
    """Remove what neither the kept bundles nor any release record needs; returns the number of bytes freed."""
    store = await hub.stream.object_store(subjects.BUNDLES)
    objects = await _objects(store)
    needed = await _needed(hub, store, kept, set(objects))
    assets = {name.split("/")[1] for name in needed if name.startswith("assets/")}
    freed = 0
    for name, info in objects.items():
        patched = name.startswith("patches/") and set(name.removeprefix("patches/").split("..")) <= assets
        if name in needed or patched or (not info.deleted and _age_s(info) < grace_s):
            continue
        if not info.deleted:
            await store.delete(name)
        # Otherwise the deleted object's marker would stay for ever.
        mark = f"$O.{subjects.BUNDLES}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"
        await hub.stream.purge_stream(f"OBJ_{subjects.BUNDLES}", subject=mark)
        freed += info.size or 0
    return freed


async def _patch(store: ObjectStore, old: Bundle, before: str, new: Bundle, after: str) -> int:
    """Size of the patch between two assets in bytes; it is stored if it is smaller than the asset."""
    name = subjects.patch_object(before, after)
    with contextlib.suppress(nats.js.errors.ObjectNotFoundError):
        return (await store.get_info(name)).size or 0
    # In a thread, because a large encoder takes seconds.
    data, patch = await asyncio.to_thread(_make, old, before, new, after)
    if len(patch) < len(data):
        await store.put(name, patch)
    return len(patch)


def _make(old: Bundle, before: str, new: Bundle, after: str) -> tuple[bytes, bytes]:
    """An asset, and the patch that produces it."""
    data = new.read(after)
    return data, make_patch(old.read(before), data)


async def _objects(store: ObjectStore) -> dict[str, ObjectInfo]:
    try:
        return {info.name: info for info in await store.list()}
    except nats.js.errors.NotFoundError:
        return {}


async def _needed(hub: Hub, store: ObjectStore, kept: Iterable[Bundle], there: set[str]) -> set[str]:
    """Names of the manifests that a device may ask for, and of their assets."""
    found = {subjects.manifest_object(bundle.digest): bundle.manifest for bundle in kept}
    for digest in await _released(hub):
        name = subjects.manifest_object(digest)
        if name in there and name not in found:
            with contextlib.suppress(FormatError):
                found[name] = manifests.decode((await store.get(name)).data or b"", name)
    return set(found) | {subjects.asset_object(file) for manifest in found.values() for file in manifest.assets()}


async def _released(hub: Hub) -> set[str]:
    """Digests of the manifests that release records name; `ssc deploy` may have published them."""
    bucket = await hub.stream.key_value(subjects.RELEASES)
    found: set[str] = set()
    for target in set(await bucket_keys(hub.stream, subjects.RELEASES)) - {subjects.SIGNING_KEY}:
        with contextlib.suppress(FormatError, nats.js.errors.KeyNotFoundError):
            record = open_record((await bucket.get(target)).value or b"", "release", target, None, target)
            release = releases.decode_release(record.body, target)
            found |= {choice.manifest for choice in (release, release.stable) if choice is not None}
    return found


def _age_s(info: ObjectInfo) -> float:
    """Seconds since an object was stored; 0 if unknown."""
    try:
        return (datetime.now(timezone.utc) - datetime.fromisoformat(info.mtime or "")).total_seconds()
    except (TypeError, ValueError):
        return 0.0
