"""The broker's accounts: one for the server and its data, one for readers of events, and one for each device.

An account is a subject space of its own. What a device publishes stays in its account, except the requests that the
account imports from the server's. For those, the broker replaces the device's reply subject with one of its own and
carries the reply back into the device's account. So a device can never name a subject of the server or of another
device as its reply subject.
"""

from __future__ import annotations

import json
from typing import Any

from runtime_edge.formats import subjects

SERVER_ACCOUNT = "SERVER"
"""Holds the streams and buckets. No device can have this name or the next one: device names are lower-case."""

READERS_ACCOUNT = "READERS"

_ANONYMOUS = "_anyone"
"""No device can have this name."""

_DIRECT_GET = "$JS.API.DIRECT.GET"
_OBJECTS = f"{_DIRECT_GET}.OBJ_{subjects.BUNDLES}"
_BY_OWNER = (subjects.TABLES, subjects.HEADS, subjects.ADAPTATIONS)
"""Buckets whose keys are for all devices of a target, or for one device."""
_READABLE = (subjects.RELEASES, *_BY_OWNER)
_MAX_CONNECTIONS = 32
"""For one device. Connections over a broken link linger until the broker has noticed."""
_BATCH_PATIENCE = "10s"
"""How long the broker waits for the next message of a batch before it forgets where to send the batch."""
_SESSIONS = {"max_memory": 0, "max_file": 256 << 20, "max_streams": 8}
"""Limits on what the broker may store for the readers' MQTT sessions."""

_Rules = dict[str, Any]


def accounts_config(server_key: str, devices: dict[str, str], readers: dict[str, str], anyone: bool) -> str:
    """The `accounts` block of the broker's configuration.

    Args:
        server_key: the server's public key.
        devices: public key of each device, by name.
        readers: password of each reader, by name.
        anyone: whether clients without credentials are let into the server's account, with all its rights.
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
    """What other accounts may import from the server's: requests, answered by one message unless stated otherwise."""
    requests = [
        "act.*.*",
        subjects.events("*"),
        subjects.clips("*"),
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
    """A device's account: what the server receives from it, what it may receive, and all its permissions.

    No subject ends in `*`: nats-server lets a client with permission for `a.*` subscribe to `a.>`.
    """
    readable = [(subjects.RELEASES, ">")]
    readable += [(bucket, key) for bucket in _BY_OWNER for key in (f"{subjects.ALL_DEVICES}.>", f"{name}.>")]
    requests = [
        subjects.frames(name),
        subjects.clips(name),
        subjects.bucket_subject(subjects.PRESENCE, name),
        subjects.bucket_subject(subjects.LEARNT, name),
        *(_last(bucket, key) for bucket, key in readable),
        _last(subjects.PRESENCE, name),
        _OBJECTS,
        f"{_OBJECTS}.>",
    ]
    heard = [f"{subjects.inbox(name)}.>", *(subjects.news(bucket, key) for bucket, key in readable)]
    # The filler that measures the link is no request: nothing receives it.
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
    """The readers' account. Events reach it before the server's, because a message that a service import has brought
    into an account is not passed on by a stream import.

    MQTT's `evt/#` stands for `evt` as well as `evt.>`, and the broker keeps sessions under $MQTT.
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
    """The request for a key's latest value in a bucket."""
    return f"{_DIRECT_GET}.{subjects.bucket_stream(bucket)}.{subjects.bucket_subject(bucket, key)}"
