"""One device's credentials, a real broker, and every reply subject that is not the device's: none may be reached.

Whatever a device publishes the broker may answer, and it answers on the subject that the device names. Each attempt is
printed with what it had an effect on; there must be nothing.
"""

import asyncio
import contextlib
import json

import nats.errors
import pytest
from fleet import ATTACKER, FOREIGN, READER, SETTLE_S, VICTIM, Fleet
from paho.mqtt import client as mqtt

from runtime_edge.formats import subjects

pytestmark = pytest.mark.timeout(180)
GET = "$JS.API.DIRECT.GET"
BATCH = json.dumps({"seq": 1, "next_by_subj": "$O.bundles.C.>", "batch": 16}).encode()

PUBLISHABLE = [
    (subjects.frames(ATTACKER), b"frame"),
    (subjects.events(ATTACKER), b"{}"),
    (subjects.filler(ATTACKER), b""),
    (f"$KV.presence.{ATTACKER}", b"{}"),
    (f"$KV.learnt.{ATTACKER}", b"{}"),
    (f"{GET}.KV_releases.$KV.releases.rpi4", b""),
    (f"{GET}.KV_releases.$KV.releases.none", b""),
    (f"{GET}.KV_tables.$KV.tables._all.rpi4", b""),
    (f"{GET}.KV_tables.$KV.tables.{ATTACKER}.rpi4", b""),
    (f"{GET}.KV_heads.$KV.heads._all.rpi4", b""),
    (f"{GET}.OBJ_bundles", BATCH),
    (f"{GET}.OBJ_bundles.$O.bundles.M.YXNzZXRz", b""),
]
"""Everything that a device may publish, and with what."""


def _is_own(subject):
    """Whether this is what the attacker may say and what comes of that: an event, a request, its answer."""
    own = {subject for subject, _ in PUBLISHABLE} | {f"news.{name}.{ATTACKER}" for name in ("presence", "learnt")}
    return subject in own or (subject.startswith("_R_.") and subject != "_R_.forged.reply")


async def _attempts(fleet):
    """Name, and what was seen of it where it must not be, of every attempt."""
    attacker, reader = await fleet.client(ATTACKER), await fleet.client(READER)
    foreign = [f"{fleet.unacknowledged}", *FOREIGN]

    async def effects(name, attempt):
        fleet.seen.clear()
        with contextlib.suppress(nats.errors.Error):
            await attempt
        await fleet.settle()
        return name, sorted({subject for subject, _ in fleet.seen if not _is_own(subject)})

    found = []
    for reply in foreign:
        for subject, payload in PUBLISHABLE:
            found.append(await effects(f"{subject}, reply {reply}", attacker.publish(subject, payload, reply)))
    for reply in foreign:
        for name, client in ((ATTACKER, attacker), (READER, reader)):
            found.append(await effects(f"{name} publishes {reply}", client.publish(reply, b"", "_INBOX.forged")))
        tracing = {"Nats-Trace-Dest": reply}
        subject = subjects.frames(ATTACKER)
        found.append(
            await effects(f"{subject}, trace to {reply}", attacker.publish(subject, b"frame", headers=tracing))
        )
    for topic in [reply.replace(".", "/") for reply in foreign if "$" not in reply]:
        found.append(await effects(f"MQTT {topic}", asyncio.to_thread(_mqtt, fleet, topic)))
    return found


def _mqtt(fleet, topic):
    """A reader publishes by MQTT, now and as a will."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.username_pw_set(READER, fleet.password)
    client.will_set(topic, b"forged")
    client.connect("127.0.0.1", fleet.mqtt_port)
    client.publish(topic, b"forged")
    for _ in range(20):
        client.loop(0.005)
    client.socket().close()


@pytest.mark.parametrize("brokers", [1, 3])
def test_no_reply_subject_of_a_device_reaches_the_server_or_another_device(tmp_path, brokers):
    fleet = Fleet(tmp_path, brokers)

    async def work():
        async with fleet.running():
            before = await fleet.world()
            await fleet.watch()
            attempts = await _attempts(fleet)
            return attempts, before, await fleet.world()

    attempts, before, after = asyncio.run(work())
    for name, effects in attempts:
        print(f"{name}: {', '.join(effects) or 'nothing'}")
    harmful = [name for name, effects in attempts if effects]
    print(f"{len(attempts)} attempts, {len(harmful)} with an effect")
    assert harmful == []
    assert after == before


def test_no_batch_of_objects_is_poured_into_another_devices_inbox(tmp_path):
    fleet = Fleet(tmp_path, 1)

    async def work():
        async with fleet.running():
            await fleet.watch()
            attacker = await fleet.client(ATTACKER)
            fleet.seen.clear()
            for number in range(20):
                await attacker.publish(f"{GET}.OBJ_bundles", BATCH, f"_INBOX.{VICTIM}.connection.{number}")
            await fleet.settle()
            await asyncio.sleep(20 * SETTLE_S)
            return sum(size for subject, size in fleet.seen if subject.startswith(f"_INBOX.{VICTIM}."))

    assert asyncio.run(work()) == 0
