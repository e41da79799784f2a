"""Whatever ids a device puts on its messages, the broker drops no message of another device, and tells of none."""

import asyncio
import contextlib

import nats.errors
import pytest
from fleet import ATTACKER, VICTIM, Fleet
from nats.js.api import Header

from runtime_edge.errors import LinkError
from runtime_edge.formats import subjects
from runtime_edge.formats.credentials import Credentials
from runtime_edge.transport.connection import Connection

pytestmark = pytest.mark.timeout(180)
WINDOWS = 20


async def _sent(link, boot, window):
    """Send a frame; returns once the broker has stored it."""
    said = asyncio.get_running_loop().create_future()
    link.send(subjects.message_id(VICTIM, boot, window), window, b"window %d" % window, said.set_result, 60.0)
    assert not isinstance(await said, LinkError)


def test_no_frame_is_dropped_because_another_device_knew_its_id(tmp_path):
    fleet, boot = Fleet(tmp_path, 1), subjects.new_boot()
    own = subjects.frames(ATTACKER)

    async def work():
        async with fleet.running():
            attacker, told = (await fleet.client(ATTACKER)).jetstream(), ""
            link = Connection(fleet.brokers[0].url, VICTIM, Credentials(nkey=tmp_path / f"{VICTIM}.creds"))
            await link.connect()
            before = (await fleet.hub.stream.stream_info(subjects.STREAM)).state.last_seq
            try:
                for window in range(WINDOWS):
                    claimed = subjects.message_id(VICTIM, boot, window)
                    for headers in ({Header.MSG_ID: claimed}, {subjects.IDENTITY_HEADER: claimed}):
                        with contextlib.suppress(nats.errors.Error):
                            await attacker.publish(own, b"claimed", headers=headers)
                    await _sent(link, boot, window)
                    try:
                        await attacker.publish(own, b"", headers={Header.EXPECTED_LAST_MSG_ID: "asked"})
                    except nats.errors.Error as exc:
                        told += str(exc)
            finally:
                await link.close()
            last = (await fleet.hub.stream.stream_info(subjects.STREAM)).state.last_seq
            stored = [await fleet.hub.stream.get_msg(subjects.STREAM, place) for place in range(before + 1, last + 1)]
            return told, [message.data for message in stored if message.subject == subjects.frames(VICTIM)]

    told, stored = asyncio.run(work())
    assert stored == [b"window %d" % window for window in range(WINDOWS)]
    assert "wrong last msg ID" in told
    assert boot not in told, "the broker has told an id of another device"
