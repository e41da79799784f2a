"""The broker's accounts: one for the server and all that it keeps, one for readers of events, and one for each device.

An account is a subject space of its own. What a device publishes stays in its account unless it is one of the requests
that the account imports from the server's; then the broker replaces the reply subject the device named by one of its
own, and carries what answers it back into the device's account. So nothing a device names as a reply is a subject of
the server's or of another device's.
"""

from __future__ import annotations

import json
from typing import Any

from runtime_edge.formats import subjects

SERVER_ACCOUNT = "SERVER"
"""Holds the streams and buckets. No device can have this name, nor the next one: theirs are lower-case."""

READERS_ACCOUNT = "READERS"

_ANONYMOUS = "_anyone"
"""No device can have this name."""

_DIRECT_GET = "$JS.API.DIRECT.GET"
_OBJECTS = f"{_DIRECT_GET}.OBJ_{subjects.BUNDLES}"
_READABLE = (subjects.RELEASES, subjects.TABLES, subjects.HEADS)
_MAX_CONNECTIONS = 32
"""Of one device: those on a broken link linger until the broker has noticed."""
_BATCH_PATIENCE = "10s"
"""How long the broker waits for the next message of a batch before it forgets where the batch goes."""
_SESSIONS = {"max_memory": 0, "max_file": 256 << 20, "max_streams": 8}
"""What the broker may keep of the readers' MQTT sessions."""

_Rules = dict[str, Any]


def accounts_config(server_key: str, devices: dict[str, str], readers: dict[str, str], anyone: bool) -> str:
    """The `accounts` block of the broker's configuration.

    Args:
        server_key: the server's public key.
        devices: public key of each device, by name.
        readers: password of each reader, by name.
        anyone: whether those without credentials are let in, to everything that is the server's.
    """
    users: list[_Rules] = [{"nkey": server_key}]
    if anyone:
        users.append({"user": _ANONYMOUS, "password": _ANONYMOUS})
    accounts = {SERVER_ACCOUNT: {"jetstream": "enabled", "users": users, "exports": _exports()}}
    accounts[READERS_ACCOUNT] = _readers(readers)
    accounts |= {name: _device(name, key) for name, key in devices.items()}
    lines = [f"  {json.dumps(name)}: {json.dumps(rules)}" for name, rules in sorted(accounts.items())]
    default = f"no_auth_user: {_ANONYMOUS}\n" if anyone else ""
    return "authorization { timeout: 5 }\naccounts {\n" + "\n".join(lines) + "\n}\n" + default


def _exports() -> list[_Rules]:
    """What of the server's account others may import: requests that one message answers, unless it says otherwise."""
    requests = [
        "act.*.*",
        subjects.events("*"),
        subjects.bucket_subject(subjects.PRESENCE, "*"),
        subjects.bucket_subject(subjects.LEARNT, "*"),
        *(_last(bucket, ">") for bucket in _READABLE),
        _last(subjects.PRESENCE, "*"),
        f"{_OBJECTS}.>",
    ]
    batches = {"service": _OBJECTS, "response_type": "stream", "response_threshold": _BATCH_PATIENCE}
    streams = [subjects.events("*"), subjects.news("*", ">"), f"{subjects.inbox('*')}.>"]
    return [{"service": subject} for subject in requests] + [batches] + [{"stream": subject} for subject in streams]


def _device(name: str, key: str) -> _Rules:
    """A device's account: what reaches the server from it, what it gets to hear, and what it may do at all.

    No `*` at an end: nats-server lets a client with permission for `a.*` subscribe to `a.>`.
    """
    readable = [(subjects.RELEASES, ">")]
    readable += [
        (bucket, key)
        for bucket in (subjects.TABLES, subjects.HEADS)
        for key in (f"{subjects.ALL_DEVICES}.>", f"{name}.>")
    ]
    requests = [
        subjects.frames(name),
        subjects.bucket_subject(subjects.PRESENCE, name),
        subjects.bucket_subject(subjects.LEARNT, name),
        *(_last(bucket, key) for bucket, key in readable),
        _last(subjects.PRESENCE, name),
        _OBJECTS,
        f"{_OBJECTS}.>",
    ]
    heard = [f"{subjects.inbox(name)}.>", *(subjects.news(bucket, key) for bucket, key in readable)]
    # What measures the link is no request: it goes nowhere.
    said = [*requests, subjects.events(name), subjects.filler(name)]
    permissions = {"publish": {"allow": said}, "subscribe": {"allow": heard}}
    imports = [
        *(_import("service", SERVER_ACCOUNT, subject) for subject in requests),
        _import("service", READERS_ACCOUNT, subjects.events(name)),
        *(_import("stream", SERVER_ACCOUNT, subject) for subject in heard),
    ]
    users = [{"nkey": key, "permissions": permissions}]
    return {"limits": {"max_connections": _MAX_CONNECTIONS}, "users": users, "imports": imports}


def _readers(passwords: dict[str, str]) -> _Rules:
    """The readers' account, which devices' events reach first: what a request brings, no stream carries on.

    MQTT's `evt/#` is `evt` as well as `evt.>`, and the broker keeps sessions under $MQTT.
    """
    permissions = {
        "publish": {"deny": ">"},
        "subscribe": {"allow": ["evt", subjects.events(">"), "$MQTT.sub.>"]},
    }
    users = [{"user": name, "password": word, "permissions": permissions} for name, word in sorted(passwords.items())]
    events = subjects.events("*")
    imports = [_import("service", SERVER_ACCOUNT, events), _import("stream", SERVER_ACCOUNT, events)]
    return {"jetstream": _SESSIONS, "users": users, "exports": [{"service": events}], "imports": imports}


def _import(kind: str, account: str, subject: str) -> _Rules:
    return {kind: {"account": account, "subject": subject}}


def _last(bucket: str, key: str) -> str:
    """The request for what a bucket holds of a key."""
    return f"{_DIRECT_GET}.{subjects.bucket_stream(bucket)}.{subjects.bucket_subject(bucket, key)}"
