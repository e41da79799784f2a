"""A fault is told within 10 s and served again within 60 s of there being room: in virtual time, from the code's own
periods."""

import asyncio
from types import SimpleNamespace

import nats.errors
import nats.js.errors
import pytest
from virtual_time import VirtualTime

from runtime_edge.transport import connection
from runtime_server.broker.broker_process import KEEP_PERIOD_S, RESTART_PAUSE_S, START_TIMEOUT_S, STOP_TIMEOUT_S
from runtime_server.broker.consumer import SILENCE_S
from runtime_server.broker.hub import CONNECT_TIMEOUT_S, RECONNECT_S
from runtime_server.telemetry.service_watch import ANSWER_S, LOOK_S, PERIOD_S, TOLD_WITHIN_S, ServiceWatch

TOLD_S, AGAIN_S = 10.0, 60.0


class FakeBroker:
    """Answers after `latency_s`, each message that is done is followed by another, and `fault` says what fails."""

    def __init__(self, time, latency_s):
        self.fault, self._time, self._latency_s = "", time, latency_s
        self.client = SimpleNamespace(is_connected=True, jetstream=lambda timeout: self)
        self.consumers = {0: SimpleNamespace(name="server-0", refused="")}
        self._stored, self._frames_until = 0, 0.0

    @property
    def done(self):
        """A frame comes and is done each tenth of a second, until the fault."""
        return {0: int(self._frames_until * 10)}

    def in_progress(self, partition):
        return int(self.fault == "stalled")

    def passes(self):
        """Frames until now."""
        self._frames_until = self._time.clock()

    async def _answer(self, value):
        if self.fault == "silent":
            await self._time.sleep(ANSWER_S)
            raise nats.errors.TimeoutError
        await self._time.sleep(self._latency_s)
        if self.fault == "stream":
            raise nats.js.errors.NotFoundError
        return value

    async def stream_info(self, name):
        return await self._answer(SimpleNamespace(state=SimpleNamespace(last_seq=self._stored + self.done[0])))

    async def consumers_info(self, name):
        gone = self.fault == "consumer"
        return await self._answer([] if gone else [SimpleNamespace(name="server-0", num_pending=0)])

    async def publish(self, subject, payload, timeout, stream):
        if self.fault == "unwritable":
            await self._time.sleep(timeout)
            raise nats.errors.TimeoutError
        await self._time.sleep(self._latency_s)
        self._stored += 1
        return SimpleNamespace(seq=self._stored + self.done[0])

    async def delete_msg(self, name, sequence):
        """Nothing tells that it was there."""


async def told_after(fault, latency_s, at_s):
    """Seconds from a fault `at_s` after the start until a trouble is told; frames come until then."""
    virtual = VirtualTime()
    broker = FakeBroker(virtual, latency_s)

    async def mend():
        await virtual.sleep(3600.0)

    watch = ServiceWatch(broker, broker, [0], mend, clock=virtual.clock, sleep=virtual.sleep)
    task = asyncio.create_task(watch.run())
    try:
        while virtual.clock() < at_s:
            broker.passes()
            await virtual.sleep(0.05)
        assert watch.troubles == []
        broker.fault = fault
        while not watch.troubles:
            await virtual.sleep(0.05)
        return virtual.clock() - at_s
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("latency_s", [0.0, PERIOD_S, ANSWER_S - 0.1])
@pytest.mark.parametrize("fault", ["consumer", "stream", "silent", "stalled", "unwritable"])
def test_each_fault_is_told_within_ten_seconds_whenever_it_comes(fault, latency_s):
    longest = max(asyncio.run(told_after(fault, latency_s, 8.0 + phase * LOOK_S / 8)) for phase in range(8))
    assert longest <= TOLD_WITHIN_S <= TOLD_S


def test_service_is_there_again_within_a_minute_of_there_being_room():
    broker_again_s = KEEP_PERIOD_S + RESTART_PAUSE_S + STOP_TIMEOUT_S + START_TIMEOUT_S
    server_again_s = RECONNECT_S + CONNECT_TIMEOUT_S + SILENCE_S
    device_again_s = connection.FIRST_PAUSE_S + connection.LONGEST_PAUSE_S + CONNECT_TIMEOUT_S
    assert broker_again_s + max(server_again_s, device_again_s) + LOOK_S + ANSWER_S <= AGAIN_S


def test_what_lasts_is_logged_once_though_its_numbers_grow(caplog):
    async def play():
        virtual = VirtualTime()
        broker = FakeBroker(virtual, 0.0)
        watch = ServiceWatch(broker, broker, [0], clock=virtual.clock, sleep=virtual.sleep)
        task = asyncio.create_task(watch.run())
        broker.fault = "stalled"
        told = []
        while virtual.clock() < 60.0:
            await virtual.sleep(1.0)
            told += [trouble for trouble in watch.troubles if trouble not in told]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return told

    told = asyncio.run(play())
    assert len(told) > 5
    assert [record.getMessage() for record in caplog.records] == told[:1]
