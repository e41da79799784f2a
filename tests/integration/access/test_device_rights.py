"""What a device may do with its own credentials, and what nobody may do in another's name."""

import asyncio
import json

import harness
import nats.errors
import nats.js.errors
import pytest
from nats.js.api import ConsumerConfig

from runtime_edge.base.broker_errors import flush
from runtime_edge.errors import LinkError
from runtime_edge.formats import subjects
from runtime_edge.formats.credentials import Address
from runtime_edge.formats.records.clip import PIECE_BYTES, ClipPiece, ClipRequest
from runtime_edge.formats.wire import Reply, encode_reply
from runtime_server.broker.hub import Hub
from runtime_server.labels.device_clips import PIECE_S, DeviceClips
from runtime_server.labels.moments import Moment
from runtime_server.releases.rollout_service import request


def test_a_device_with_its_own_credentials_does_all_it_needs(guarded):
    seen = []

    async def on_change(key, value):
        seen.append((key, value))

    async def work():
        async with guarded.running() as hub, guarded.linked("pi-1") as link:
            tables = await hub.stream.key_value(subjects.TABLES)
            await tables.put("_all.rpi4", b"for all")
            for bucket in (subjects.TABLES, subjects.HEADS, subjects.ADAPTATIONS):
                await link.watch(bucket, ["_all.rpi4", "pi-1.rpi4"], on_change)
            await link.watch(subjects.RELEASES, ["rpi4"], on_change)
            await tables.put("pi-1.rpi4", b"own")
            await tables.put("pi-2.rpi4", b"another's")
            await (await hub.stream.key_value(subjects.RELEASES)).put("rpi4", b"release")
            await (await hub.stream.object_store(subjects.BUNDLES)).put("assets/a", b"bundle")
            assert await link.fetch("assets/a", 10) == b"bundle"
            assert await link.value(subjects.RELEASES, "rpi4") == b"release"
            await link.put(subjects.PRESENCE, b'{"well": true}')

            async def is_reported():  # nobody acknowledges a report
                return await hub.presence() == {"pi-1": {"well": True}}

            await harness.eventually(is_reported)
            assert await link.value(subjects.PRESENCE, "pi-1") == b'{"well": true}'
            events = asyncio.Queue()
            await hub.subscribe(subjects.events("pi-1"), events.put)
            await link.publish(subjects.events("pi-1"), b"event")
            assert (await events.get()).data == b"event"
            await harness.stored(link, "pi-1.boot.0", 0, b"frame")
            stored = await hub.stream.get_msg(subjects.STREAM, 1)
            answer = asyncio.get_running_loop().create_future()
            link.expect(0, 60.0, answer.set_result)
            reply = subjects.read_envelope(stored.headers, stored.subject).reply
            await hub.client.publish(reply, encode_reply(Reply(0, 1, "ok", 0)))
            assert await answer is not None
            await harness.eventually(lambda: len(seen) == 3)

    asyncio.run(work())
    assert sorted(seen) == [("_all.rpi4", b"for all"), ("pi-1.rpi4", b"own"), ("rpi4", b"release")]


def test_only_the_server_borrows_a_clip_and_where_none_is_lent_it_knows_at_once(guarded):
    clip = bytes(range(256)) * 100

    async def work():
        async with guarded.running() as hub, guarded.linked("pi-1") as link, guarded.raw("pi-2") as (client, denied):

            async def asked(data):
                request = ClipRequest.decode(data)
                piece = clip[request.offset :][:PIECE_BYTES]
                answer = ClipPiece(asked=request.asked, offset=request.offset, size=len(clip), data=piece)
                await link.publish(subjects.clips("pi-1"), answer.encode())

            await client.publish(subjects.clip_requests("pi-1"), b"", reply="_INBOX.pi-2.a")
            await harness.eventually(lambda: denied)
            clips = DeviceClips(hub, None)
            moment = Moment("pi-1", "rain", 5.0, 6.0, 7.0)
            began = asyncio.get_running_loop().time()
            assert await clips.fetched(moment) == b""
            assert asyncio.get_running_loop().time() - began < PIECE_S
            link.on_request(subjects.clip_requests("pi-1"), asked)
            await harness.eventually(lambda: clips_equal(clips, moment, clip))

    async def clips_equal(clips, moment, expected):
        return await clips.fetched(moment) == expected

    asyncio.run(work())


def test_a_device_cannot_publish_in_anothers_name_nor_what_is_the_servers(guarded):
    partition = subjects.partition("pi-1")
    forbidden = [
        subjects.frames("pi-1"),
        f"act.{(subjects.partition('pi-2') + 1) % subjects.PARTITIONS}.pi-2",
        f"{subjects.frames('pi-2')}.more",
        f"act.{partition}.nobody",
        subjects.events("pi-1"),
        subjects.clips("pi-1"),
        subjects.clip_requests("pi-1"),
        "$KV.presence.pi-1",
        "$KV.tables._all.rpi4",
        "$KV.tables.pi-2.rpi4",
        "$KV.heads._all.rpi4",
        "$KV.releases.rpi4",
        "$KV.releases._key",
        "$O.bundles.M.YXNzZXRz",
        "$O.bundles.C.chunk",
        "_INBOX.pi-1.connection.0",
        "_INBOX.pi-2.connection.0",
        "news.tables._all.rpi4",
        "news.releases.rpi4",
        "srv.status",
        "$SYS.REQ.SERVER.PING",
        "anything",
    ]
    overheard = set()

    async def on_message(message):
        if message.data == b"forged":
            overheard.add(message.subject)

    async def work():
        async with guarded.running() as hub, guarded.raw("pi-2") as (client, denied):
            for subject in (">", "$KV.>", "$O.>", "_INBOX.pi-1.>", "_INBOX.pi-2.>"):
                await hub.subscribe(subject, on_message)
            for subject in forbidden:
                await client.publish(subject, b"forged", headers={subjects.IDENTITY_HEADER: "pi-1.boot.0"})
            await client.publish(subjects.events("pi-2"), b"forged")  # allowed, and after all that is not
            await harness.eventually(lambda: subjects.events("pi-2") in overheard)
            await harness.eventually(lambda: len(denied) >= len(forbidden))
            states = [(await hub.stream.stream_info(f"KV_{name}")).state.messages for name in ("tables", "releases")]
            return denied, states

    denied, states = asyncio.run(work())
    assert overheard == {subjects.events("pi-2")}
    assert states == [0, 0]
    text = "\n".join(denied)
    for subject in forbidden:
        assert f'permissions violation for publish to "{subject.lower()}"' in text.lower()


def test_a_device_cannot_listen_to_others(guarded):
    forbidden = [
        ">", "*", "*.>", "_INBOX.>", "_INBOX.*.>", "_INBOX.pi-1.>", "_INBOX.pi-1.*.*", "act.>", subjects.frames("pi-1"),
        subjects.frames("pi-2"), "evt.>", subjects.events("pi-1"), subjects.clips("pi-1"),
        "clip.>", subjects.clip_requests("pi-1"), "$KV.>", "$KV.tables.pi-1.rpi4", "$KV.presence.>",
        "news.>", "news.tables.>", "news.tables.*", "news.tables.*.*", "news.tables.*.>", "news.*.pi-2.>",
        "news.tables.pi-1.rpi4", "news.presence.>", "news.heads.pi-1.m2",
        "$O.>", "$JS.>", "$JS.API.>", "$JS.EVENT.>", "$SYS.>", "srv.>",
    ]  # fmt: skip

    async def work():
        async with guarded.running() as hub, guarded.raw("pi-2") as (client, denied), guarded.linked("pi-1") as link:
            heard = []

            async def on_message(message):
                heard.append(message)

            for subject in forbidden:
                await client.subscribe(subject, cb=on_message)
                await client.subscribe(subject, "server", cb=on_message)
            await harness.eventually(lambda: len(denied) >= 2 * len(forbidden))
            await harness.stored(link, "pi-1.boot.0", 0, b"secret")
            await link.publish(subjects.events("pi-1"), b"secret")
            await link.put(subjects.PRESENCE, b'{"secret": 1}')
            stored = await hub.stream.get_msg(subjects.STREAM, 1)
            reply = subjects.read_envelope(stored.headers, stored.subject).reply
            await hub.client.publish(reply, b"the answer to pi-1")
            await (await hub.stream.key_value(subjects.TABLES)).put("pi-1.rpi4", b"pi-1's table")
            await harness.eventually(lambda: link.bad_replies == 1)  # the answer did reach the one it was for
            await flush(client)  # and what the broker sent pi-2 before has come
            return denied, heard

    denied, heard = asyncio.run(work())
    assert heard == []
    text = "\n".join(denied).lower()
    for subject in forbidden:
        assert text.count(f'permissions violation for subscription to "{subject.lower()}"') == 2, subject


def test_a_device_cannot_ask_jetstream_for_anything_but_its_own(guarded):
    consumer = {"stream_name": "ACTIVATIONS", "config": {"deliver_subject": "_INBOX.pi-2.spy", "ack_policy": "none"}}
    own = json.dumps({"last_by_subj": "$KV.tables.pi-1.rpi4"})
    requests = [
        ("$JS.API.CONSUMER.CREATE.ACTIVATIONS", json.dumps(consumer)),
        ("$JS.API.CONSUMER.CREATE.ACTIVATIONS.spy", json.dumps(consumer)),
        ("$JS.API.CONSUMER.CREATE.ACTIVATIONS.spy.act.>", json.dumps(consumer)),
        ("$JS.API.CONSUMER.DURABLE.CREATE.ACTIVATIONS.spy", json.dumps(consumer)),
        ("$JS.API.CONSUMER.CREATE.KV_tables", json.dumps(consumer | {"stream_name": "KV_tables"})),
        ("$JS.API.CONSUMER.CREATE.OBJ_bundles", json.dumps(consumer | {"stream_name": "OBJ_bundles"})),
        ("$JS.API.CONSUMER.MSG.NEXT.ACTIVATIONS.server-0", b"1"),
        ("$JS.API.CONSUMER.DELETE.ACTIVATIONS.server-0", b""),
        ("$JS.API.CONSUMER.LIST.ACTIVATIONS", b""),
        ("$JS.ACK.ACTIVATIONS.server-0.1.1.1.1.0", b"+ACK"),
        ("$JS.API.STREAM.DELETE.ACTIVATIONS", b""),
        ("$JS.API.STREAM.PURGE.KV_tables", b""),
        ("$JS.API.STREAM.UPDATE.ACTIVATIONS", json.dumps({"name": "ACTIVATIONS", "subjects": ["act.>"]})),
        ("$JS.API.STREAM.CREATE.SPY", json.dumps({"name": "SPY", "subjects": ["evt.>"]})),
        ("$JS.API.STREAM.INFO.ACTIVATIONS", b""),
        ("$JS.API.STREAM.MSG.GET.ACTIVATIONS", json.dumps({"seq": 1})),
        ("$JS.API.STREAM.MSG.GET.KV_tables", own),
        ("$JS.API.STREAM.MSG.DELETE.OBJ_bundles", json.dumps({"seq": 1})),
        ("$JS.API.DIRECT.GET.ACTIVATIONS", json.dumps({"seq": 1})),
        ("$JS.API.DIRECT.GET.KV_tables", own),
        ("$JS.API.DIRECT.GET.KV_tables.$KV.tables.pi-1.rpi4", b""),
        ("$JS.API.DIRECT.GET.KV_tables.$KV.tables.*.rpi4", b""),
        ("$JS.API.DIRECT.GET.KV_tables.$KV.tables.*.*", b""),
        ("$JS.API.DIRECT.GET.KV_tables.$KV.tables.>", b""),
        ("$JS.API.DIRECT.GET.KV_tables.>", b""),
        ("$JS.API.DIRECT.GET.KV_presence.$KV.presence.pi-1", b""),
        ("$JS.API.DIRECT.GET.KV_presence", json.dumps({"last_by_subj": "$KV.presence.pi-1"})),
        ("$JS.API.INFO", b""),
    ]

    async def work():
        async with guarded.running() as hub, guarded.raw("pi-2") as (client, denied), guarded.linked("pi-1") as link:
            await harness.stored(link, "pi-1.boot.0", 0, b"secret")
            await link.put(subjects.PRESENCE, b'{"secret": 1}')
            await (await hub.stream.key_value(subjects.TABLES)).put("pi-1.rpi4", b"pi-1's table")
            await (await hub.stream.object_store(subjects.BUNDLES)).put("assets/a", b"bundle")
            await hub.stream.add_consumer(subjects.STREAM, ConsumerConfig(durable_name="server-0"))
            before = await _world(hub)
            answers = await asyncio.gather(
                *(client.request(subject, _bytes(body), timeout=1.0) for subject, body in requests),
                return_exceptions=True,
            )
            return denied, answers, before, await _world(hub)

    denied, answers, before, after = asyncio.run(work())
    assert before == after
    assert {type(answer) for answer in answers} == {nats.errors.TimeoutError}
    text = "\n".join(denied).lower()
    for subject, _ in requests:
        assert f'permissions violation for publish to "{subject.lower()}"' in text


def _bytes(body):
    return body if isinstance(body, bytes) else body.encode()


async def _world(hub):
    """What there is in JetStream."""
    found = {}
    for info in await hub.stream.streams_info():
        consumers = [consumer.name for consumer in await hub.stream.consumers_info(info.config.name)]
        found[info.config.name] = (info.state.messages, info.state.first_seq, info.config.subjects, consumers)
    return found


def test_a_device_cannot_remove_what_others_have_said_of_themselves(guarded):
    async def work():
        async with guarded.running() as hub, guarded.linked("pi-1") as link, guarded.raw("pi-2") as (client, _):
            await link.put(subjects.PRESENCE, b'{"here": 1}')
            for kind in ("all", "sub"):
                with pytest.raises(nats.js.errors.APIError):
                    await client.jetstream().publish("$KV.presence.pi-2", b"{}", headers={"Nats-Rollup": kind})
            return await hub.presence()

    assert asyncio.run(work()) == {"pi-1": {"here": 1}}


@pytest.mark.parametrize("ask", [Hub.server_status, Hub.signing_key, lambda hub: request(hub, "list")])
def test_a_servers_command_with_a_devices_credentials_is_told_whose_it_needs(guarded, ask):
    """The broker does not answer; that it refuses stands beside the answers."""
    fix = r"permissions violation for .*: allow it .*, or give --state of its server in place of .*pi-1\.creds"

    async def work():
        async with guarded.running(), Hub(Address(guarded.broker.url, guarded.credentials("pi-1"))) as hub:
            with pytest.raises(LinkError, match=fix):
                await ask(hub)

    asyncio.run(work())
