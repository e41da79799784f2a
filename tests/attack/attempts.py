"""What one device tries with its credentials against everybody else of a fleet."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from attacker import INBOX, Attacker
from fleet import ATTACKER, FOREIGN, OTHER, VICTIM

from runtime_edge.formats import subjects

Act = Callable[[Attacker], Awaitable[object]]
FRAMES, OWN = subjects.STREAM, subjects.frames(ATTACKER)
API = "$JS.API"
GET = f"{API}.DIRECT.GET"
PRESENCE, LEARNT = f"$KV.presence.{ATTACKER}", f"$KV.learnt.{ATTACKER}"


@dataclass(frozen=True)
class Attempt:
    """One thing a device tries."""

    kind: str
    name: str
    act: Act


def attempts(frame):
    """All of them, what does most damage last. `frame(window)`: a frame that the server can complete."""
    return [
        *_listening(),
        *_reading(),
        *_headers(frame),
        *_frames(frame),
        *_reports(),
        *_sockets(),
        *_mqtt(),
        *_replies(),
        *_publishing(),
        *_requests(),
    ]


def _publish(kind, subject, data=b"forged", reply=INBOX, headers=None, name=""):
    return Attempt(kind, name or subject, lambda attacker: attacker.publish(subject, data, reply, headers))


def _listening():
    heard = [
        ">", "*", "*.>", "act.>", "act.*.*", "evt.>", "evt.*", "news.>", "news.tables.>", "news.*.*.>", "$KV.>",
        "$O.>", "$O.bundles.C.>", "$JS.>", "$JS.API.>", "$JS.ACK.>", "$JS.EVENT.>", "$SYS.>", "$SYS.ACCOUNT.>",
        "$MQTT.>", "$MQTT.sub.>", "$NRG.>", "$GR.>", "$GNR.>", "_R_.>", "_GR_.>", "_INBOX.>", "_INBOX.*",
        "_INBOX.*.>", "_INBOX.*.*.*", "srv.>", "srv.status", "dead.>", "nil.>", "news.presence.>",
    ]  # fmt: skip
    for name in (VICTIM, OTHER):
        heard += [
            subjects.frames(name), subjects.events(name), subjects.filler(name), f"_INBOX.{name}.>",
            f"_INBOX.{name}.*.*", f"news.tables.{name}.>", f"news.heads.{name}.>", f"news.presence.{name}",
            f"$KV.tables.{name}.rpi4", f"$KV.presence.{name}", f"$KV.learnt.{name}",
        ]  # fmt: skip
    found = [
        Attempt("listen", subject, lambda attacker, subject=subject: attacker.subscribe(subject)) for subject in heard
    ]
    queues = (">", "act.>", "_INBOX.>", f"_INBOX.{VICTIM}.>", "srv.status", "news.tables.>")
    found += [
        Attempt("listen in a queue", subject, lambda attacker, subject=subject: attacker.subscribe(subject, "server"))
        for subject in queues
    ]
    return found


def _reading():
    """Direct gets and other requests for what is not the device's."""
    named = [
        f"KV_tables.$KV.tables.{VICTIM}.rpi4", f"KV_tables.$KV.tables.{OTHER}.rpi4", "KV_tables.$KV.tables.>",
        "KV_tables.>", "KV_tables.$KV.tables.*.rpi4", "KV_tables.$KV.tables.*.*", f"KV_heads.$KV.heads.{VICTIM}.rpi4",
        "KV_heads.>", f"KV_presence.$KV.presence.{VICTIM}", "KV_presence.>", f"KV_learnt.$KV.learnt.{VICTIM}",
        "KV_learnt.>", f"{FRAMES}.{subjects.frames(VICTIM)}", f"{FRAMES}.act.>", f"DEAD.dead.0.{VICTIM}",
        "DEAD.dead.>",
    ]  # fmt: skip
    found = [_publish("direct get", f"{GET}.{name}", b"") for name in named]
    asked = {
        "by place": {"seq": 1},
        "next of a subject": {"seq": 1, "next_by_subj": ">"},
        "last of a subject": {"last_by_subj": f"$KV.tables.{VICTIM}.rpi4"},
        "several": {"multi_last": [">"]},
        "a batch": {"seq": 1, "next_by_subj": ">", "batch": 64, "max_bytes": 1 << 20},
        "since a time": {"start_time": "2020-01-01T00:00:00Z", "next_by_subj": ">", "batch": 64},
    }
    for stream in ("KV_tables", "KV_heads", "KV_presence", FRAMES, "DEAD"):
        found += [
            _publish("direct get", f"{GET}.{stream}", json.dumps(body).encode(), name=f"{GET}.{stream}, {what}")
            for what, body in asked.items()
        ]
    for stream in ("KV_tables", FRAMES, "OBJ_bundles"):
        body = json.dumps({"seq": 1}).encode()
        found.append(_publish("read a stream", f"{API}.STREAM.MSG.GET.{stream}", body))
    return found


def _headers(frame):
    """Headers that mean something to the broker or the server, on what a device may publish."""
    claimed = subjects.message_id(VICTIM, "boot", 1)
    last = "Nats-Expected-Last-Subject-Sequence"
    told = [
        {"Nats-Msg-Id": claimed}, {"Nats-Msg-Id": "x" * 60_000}, {subjects.IDENTITY_HEADER: claimed},
        {"Nats-Expected-Last-Msg-Id": "asked"}, {"Nats-Expected-Last-Sequence": "1"},
        {"Nats-Expected-Last-Sequence": "18446744073709551615"}, {last: "0"},
        {last: "0", f"{last}-Subject": subjects.frames(VICTIM)},
        {"Nats-Expected-Stream": "KV_tables"}, {"Nats-Rollup": "all"}, {"Nats-Rollup": "sub"}, {"Nats-TTL": "1s"},
        {"Nats-TTL": "never"}, {"Nats-Marker-Reason": "Purge"}, {"Nats-Incr": "+1"},
        {"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "1"},
        {"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": subjects.frames(VICTIM)},
        {"Nats-Schedule": "@at 2020-01-01T00:00:00Z", "Nats-Schedule-Target": f"$KV.tables.{VICTIM}.rpi4"},
        {"KV-Operation": "PURGE"}, {"KV-Operation": "DEL"}, {"Nats-Required-Api-Level": "0"},
        {"Nats-Pending-Messages": "0"}, {"Nats-Trace-Dest": f"_INBOX.{VICTIM}.connection.0"},
        {"Nats-Trace-Dest": "$KV.releases.rpi4", "Nats-Trace-Only": "true"},
        {"Nats-Stream": FRAMES, "Nats-Subject": subjects.frames(VICTIM), "Nats-Sequence": "1"},
        {"Nats-Request-Info": json.dumps({"acc": "SERVER", "user": "server"})},
        {"Status": "409", "Description": "Consumer Deleted"},
    ]  # fmt: skip
    found = []
    for headers in told:
        shown = ", ".join(f"{name}: {value[:40]}" for name, value in headers.items())
        for kind, subject, data in (("a frame", OWN, frame(900)), ("a report", PRESENCE, b"{}")):
            found.append(_publish(f"headers of {kind}", subject, data, headers=headers, name=f"{shown} on {subject}"))
    replies = [
        f"_INBOX.{VICTIM}.connection.0", f"_INBOX.{OTHER}.connection.0", f"_INBOX.{VICTIM}.>", "srv.status",
        "$KV.releases.rpi4", f"{API}.STREAM.PURGE.{FRAMES}", f"_INBOX.{ATTACKER}.a.1\r\nPUB srv.status 0",
        f"_INBOX.{ATTACKER}",
    ]  # fmt: skip
    for number, reply in enumerate(replies):
        identity = subjects.message_id(ATTACKER, "replies", number)
        headers = {subjects.IDENTITY_HEADER: identity, subjects.REPLY_HEADER: reply}
        found.append(_publish("answer elsewhere", OWN, frame(number), headers=headers, name=f"answered on {reply!r}"))
    return found


def _frames(frame):
    """Frames that are damaged, foreign or in the way."""
    good = frame(0)
    contents = {
        "nothing": b"", "one byte": b"\x02", "zeros": bytes(4096), "cut short": good[:-9],
        "a flipped bit": good[:9] + bytes([good[9] ^ 1]) + good[10:], "twice": good * 2,
        "a megabyte of noise": b"\xff" * (1 << 20), "JSON": b"{}", "another version": b"\x7f" + good[1:],
    }  # fmt: skip
    found = []
    for number, (what, data) in enumerate(contents.items()):
        headers = {subjects.IDENTITY_HEADER: subjects.message_id(ATTACKER, "contents", number)}
        found.append(_publish("frames", OWN, data, headers=headers, name=f"a frame with {what}"))
    identities = {
        "another device": subjects.message_id(VICTIM, "boot", 0),
        "another window": subjects.message_id(ATTACKER, "boot", 7), "no boot": f"{ATTACKER}..0",
        "a very long boot": f"{ATTACKER}.{'b' * 5000}.0", "bytes that are no text": f"{ATTACKER}.\udcff.0",
        "nobody": "",
    }  # fmt: skip
    for what, identity in identities.items():
        headers = {subjects.IDENTITY_HEADER: identity.encode(errors="replace").decode()}
        found.append(_publish("frames", OWN, good, headers=headers, name=f"a frame in the name of {what}"))
    for index in (2**31, 2**53, 2**63 - 1):
        headers = {subjects.IDENTITY_HEADER: subjects.message_id(ATTACKER, "sparse", index)}
        found.append(_publish("frames", OWN, frame(index), headers=headers, name=f"a frame of window {index}"))
    return found


def _reports():
    contents = {
        "nothing": b"", "no text": b"\xff\xfe\xfa", "deep JSON": b'{"a":' * 5000,
        "another's name": json.dumps({"device": VICTIM}).encode(),
        "a number beyond all": b'{"windows_captured": 1e999}', "a key twice": b'{"a": 1, "a": 2}', "a list": b"[]",
        "60 kB": b'{"a": "' + b"x" * 60_000 + b'"}', "more than is taken": b"x" * 70_000,
        "control characters": b'{"boot": "\\u001b[2J\\u202e"}',
    }  # fmt: skip
    found = [_publish("reports", PRESENCE, data, name=f"a report of {what}") for what, data in contents.items()]
    found += [_publish("what was learnt", LEARNT, data, name=f"learnt: {what}") for what, data in contents.items()]
    return found


def _sockets():
    """What no library of a client would say."""
    lines = {
        "two commands in a subject": b"PUB nil.pi-2\r\nPUB srv.status 6\r\nforged\r\n",
        "a negative length": b"PUB nil.pi-2 -1\r\n", "an endless length": b"PUB nil.pi-2 99999999999999999999\r\n",
        "more headers than message": b"HPUB nil.pi-2 99 9\r\n",
        "a very long command": b"PUB " + b"a" * (1 << 16) + b" 0\r\n\r\n", "an empty subject": b"PUB  0\r\n\r\n",
        "no text": bytes(range(256)) * 16, "a message as the broker writes it": b"MSG srv.status 1 6\r\nforged\r\n",
        "an INFO as the broker writes it": b'INFO {"server_id":"x"}\r\n',
        "a second CONNECT": b'CONNECT {"account":"SERVER","verbose":false}\r\n',
        "another's subject in NUL": b"PUB evt.pi-1\0 0\r\n\r\n", "a tab for a space": b"PUB\tevt.pi-1\t0\r\n\r\n",
        "small letters": b"pub evt.pi-1 6\r\nforged\r\n",
    }  # fmt: skip
    routes = {
        "a route's message": b"RMSG SERVER srv.status 6\r\nforged\r\n", "a route's subscription": b"RS+ SERVER >\r\n",
        "a leaf's message": b"LMSG srv.status 6\r\nforged\r\n", "a leaf's subscription": b"LS+ >\r\n",
        "an account's subscription": b"A+ SERVER\r\n",
    }  # fmt: skip
    found = [_say(what, data + b"PING\r\n") for what, data in (lines | routes).items()]
    claims = [
        {"user": "server"}, {"user": "_anyone", "pass": "_anyone"}, {"user": VICTIM}, {"user": "phone", "pass": ""},
        {"user": "streamsplit", "pass": ""}, {"auth_token": "server"}, {"jwt": "e30.e30.e30"},
        {"nkey": "U" + "A" * 55, "sig": "A" * 86}, {"nkey": "", "sig": ""}, {"user": "$SYS"}, {},
    ]  # fmt: skip
    for claim in claims:
        connect = (
            b"CONNECT "
            + json.dumps(claim | {"verbose": False}).encode()
            + b"\r\nSUB > 1\r\nPUB srv.status 6\r\nforged\r\nPING\r\n"
        )
        found.append(_say(f"as {json.dumps(claim)[:60]}", connect, own=False))
    listening = b"SUB > 1\r\nPUB srv.status 6\r\nforged\r\nPING\r\n"
    beyond = [{"account": "SERVER"}, {"account": VICTIM, "new_account": False}, {"echo": False, "account": "$SYS"}]
    beyond += [
        {"kind": kind, "name": "forged", "remote_account": "SERVER"} for kind in ("route", "gateway", "leafnode")
    ]
    return found + [_say(f"its own key, and {json.dumps(what)}", listening, **what) for what in beyond]


def _mqtt():
    names = [
        (None, None),
        ("", ""),
        (ATTACKER, ""),
        ("_anyone", "_anyone"),
        ("server", ""),
        ("phone", "phone"),
        (VICTIM, VICTIM),
    ]
    return [
        Attempt("MQTT", f"as {name[0]!r}", lambda attacker, name=name: asyncio.to_thread(attacker.mqtt, *name))
        for name in names
    ]


def _say(what, data, own=True, **claims):
    return Attempt("connections", what, lambda attacker: attacker.say(data, own, **claims))


def _replies():
    """Each subject that is not the device's, as the reply to something that it may publish."""
    asked = [
        (OWN, b"frame"), (PRESENCE, b"{}"), (LEARNT, b"{}"), (subjects.events(ATTACKER), b"{}"),
        (subjects.filler(ATTACKER), b""), (f"{GET}.KV_releases.$KV.releases.rpi4", b""),
        (f"{GET}.OBJ_bundles", json.dumps({"seq": 1, "next_by_subj": "$O.bundles.C.>", "batch": 16}).encode()),
    ]  # fmt: skip
    return [
        _publish("replies", subject, data, reply, name=f"the answer to {subject} to {reply}")
        for number, reply in enumerate(FOREIGN)
        for subject, data in (asked[number % len(asked)], asked[(number + 3) % len(asked)])
    ]


def _publishing():
    """In the name of another device or of the server."""
    named = [subjects.frames(name) for name in (VICTIM, OTHER)] + [f"act.{number}.{VICTIM}" for number in range(4)]
    named += [
        f"{OWN}.more",
        "act.canary",
        "act.0.nobody",
        f"act.9.{ATTACKER}",
        "dead.0.forged",
        f"dead.1.{VICTIM}",
        "nil.pi-1",
        "evt",
        "evt.forged",
    ]
    for name in (VICTIM, OTHER):
        named += [subjects.events(name), f"_INBOX.{name}.connection.1", f"$KV.presence.{name}", f"$KV.learnt.{name}"]
        named += [
            f"$KV.tables.{name}.rpi4",
            f"$KV.heads.{name}.rpi4",
            f"news.tables.{name}.rpi4",
            f"news.heads.{name}.rpi4",
        ]
    named += [
        "$KV.tables._all.rpi4", "$KV.heads._all.rpi4", "$KV.releases.rpi4", "$KV.releases._key",
        f"$KV.tables.{ATTACKER}.rpi4", f"{PRESENCE}.more", "$O.bundles.M.YXNzZXRz", "$O.bundles.C.forged",
        "news.releases.rpi4", "news.tables._all.rpi4", f"news.presence.{VICTIM}", "srv.status", "srv.forged",
        "_R_.forged.reply", "_GR_.forged.reply", "$MQTT.sub.forged", "$MQTT.msgs.evt",
        "$JS.FC.ACTIVATIONS.server-0.x", "$JS.ACK.ACTIVATIONS.server-0.1.1.1.1.0", "$JSC.CI.ACTIVATIONS.server-0",
        "$NRG.V.forged", "$SRV.PING", "$SRV.INFO.streamsplit", "anything",
    ]  # fmt: skip
    system = [
        "REQ.SERVER.PING", "REQ.SERVER.PING.CONNZ", "REQ.SERVER.PING.JSZ", "REQ.SERVER.PING.IDZ",
        "REQ.ACCOUNT.SERVER.CONNZ", "REQ.ACCOUNT.SERVER.SUBSZ", "REQ.ACCOUNT.PING.STATZ", "REQ.USER.INFO",
        "REQ.CLAIMS.UPDATE", "REQ.CLAIMS.DELETE", "REQ.SERVER.forged.RELOAD", "REQ.SERVER.forged.KICK",
        "REQ.SERVER.forged.LDM", "ACCOUNT.SERVER.DISCONNECT", "SERVER.forged.SHUTDOWN", "DEBUG.SUBSCRIBERS",
    ]  # fmt: skip
    found = [_publish("publish", subject) for subject in dict.fromkeys(named)]
    return found + [_publish("the broker's own account", f"$SYS.{subject}", b"") for subject in system]


def _requests():
    """JetStream's interface."""
    consumer = {"stream_name": FRAMES, "config": {"deliver_subject": INBOX, "ack_policy": "none", "name": "forged"}}
    onto = {"stream_name": FRAMES, "config": {"deliver_subject": f"$KV.tables.{VICTIM}.rpi4", "ack_policy": "none"}}
    stream = {"name": "FORGED", "subjects": ["forged.>"]}
    found = [
        ("INFO", {}), ("STREAM.NAMES", {}), ("STREAM.LIST", {}), ("STREAM.CREATE.FORGED", stream),
        ("STREAM.CREATE.FORGED2", {"name": "FORGED2", "subjects": [">"]}),
        ("STREAM.CREATE.MIRROR", {"name": "MIRROR", "mirror": {"name": FRAMES}}),
        ("STREAM.CREATE.SOURCE", {"name": "SOURCE", "sources": [{"name": "KV_tables"}]}),
        ("STREAM.CREATE.AGAIN", stream | {"name": "AGAIN", "republish": {"src": "forged.>", "dest": "news.>"}}),
        ("STREAM.TEMPLATE.CREATE.FORGED", stream), ("META.LEADER.STEPDOWN", {}),
        ("SERVER.REMOVE", {"peer": "forged"}), ("ACCOUNT.PURGE.SERVER", {}),
        ("ACCOUNT.STREAM.MOVE.SERVER.ACTIVATIONS", {}), ("DIRECT.GET.OBJ_bundles.>", {}),
    ]  # fmt: skip
    for name in (FRAMES, "KV_presence"):
        asked = consumer | {"stream_name": name}
        found += [
            (f"CONSUMER.CREATE.{name}", asked), (f"CONSUMER.CREATE.{name}.forged", asked),
            (f"CONSUMER.CREATE.{name}.forged.>", asked), (f"CONSUMER.DURABLE.CREATE.{name}.forged", asked),
            (f"CONSUMER.NAMES.{name}", {}), (f"CONSUMER.LIST.{name}", {}),
        ]  # fmt: skip
    found.append((f"CONSUMER.CREATE.{FRAMES}.onto", onto))
    for number in range(subjects.PARTITIONS):
        one = f"{FRAMES}.server-{number}"
        found += [(f"CONSUMER.{what}.{one}", {}) for what in ("INFO", "UNPIN", "LEADER.STEPDOWN", "RESET")]
        found += [
            (f"CONSUMER.MSG.NEXT.{one}", {"batch": 100}),
            (f"CONSUMER.PAUSE.{one}", {"pause_until": "2099-01-01T00:00:00Z"}),
            (f"CONSUMER.DELETE.{one}", {}),
        ]
    for name in (FRAMES, "DEAD", "KV_tables", "KV_presence", "KV_releases", "OBJ_bundles"):
        found += [
            (f"STREAM.{what}.{name}", {}) for what in ("INFO", "SNAPSHOT", "RESTORE", "LEADER.STEPDOWN", "PEER.REMOVE")
        ]
        found += [
            (f"STREAM.MSG.DELETE.{name}", {"seq": 1}),
            (f"STREAM.UPDATE.{name}", {"name": name, "subjects": ["x"]}),
        ]
        found += [(f"STREAM.PURGE.{name}", {}), (f"STREAM.DELETE.{name}", {})]
    return [_publish("JetStream", f"{API}.{subject}", json.dumps(body).encode()) for subject, body in found]
