import asyncio
import json
from collections import Counter

import pytest

from runtime_edge.config import DeviceConfig
from runtime_edge.errors import HeadError, LinkError, SignatureError
from runtime_edge.formats import subjects
from runtime_edge.formats.minisign import SecretKey, generate_key
from runtime_edge.formats.records.envelope import seal
from runtime_edge.formats.update_events import decode_update_event
from runtime_edge.transport.accounting import LoopCounts
from runtime_edge.transport.in_memory import InMemoryTransport
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.received_records import ReceivedRecords, RecordKind
from runtime_edge.updates.trial import update_log
from runtime_edge.updates.update_reports import UpdateReports

SECRET = SecretKey(b"\1" * 8, bytes(32))
OWN, COMMON = subjects.table_key("rpi4", "pi-1"), subjects.table_key("rpi4")


class Broker(InMemoryTransport):
    """One whose connection breaks when certain keys are asked for."""

    def __init__(self, values=None, breaks_at=()):
        super().__init__()
        self.values = {(bucket, key): value for bucket, key, value in values or ()}
        self._breaks_at = breaks_at

    async def value(self, bucket, key):
        if key in self._breaks_at:
            raise LinkError("gone")
        return await super().value(bucket, key)


class Device:
    """Uses every record but `bad`."""

    def __init__(self, state, broker):
        config = DeviceConfig(state=state, target="rpi4", device="pi-1")
        self.store, self.counts, self.used = BundleStore(state, None), LoopCounts(), []
        reports = UpdateReports(config, broker, self.counts, self.store.trials)
        kind = RecordKind("head", lambda data, source: data)
        self.records = ReceivedRecords(kind, config, broker, self.store, reports)

    async def use(self, record, data, source):
        if record == b"bad":
            raise HeadError(f"{source}: bad")
        new = record not in self.used[-1:]
        self.used.append(record)
        return new


def plain(text):
    """As a version without numbers put it."""
    return json.dumps({"head": text.decode()}).encode()


@pytest.fixture
def run(tmp_path):
    def run(broker, *steps):
        device = Device(tmp_path, broker)

        async def play():
            for key, record in steps:
                await device.records.take(key, record, device.use)

        asyncio.run(play())
        return device

    return run


def test_its_own_record_is_not_replaced_by_that_of_all_devices(run):
    assert run(Broker(), (COMMON, plain(b"1")), (OWN, plain(b"2")), (COMMON, plain(b"3")), (OWN, plain(b"4"))).used == [
        b"1",
        b"2",
        b"4",
    ]


def test_its_own_record_comes_first_even_when_it_is_in_use_already(run):
    device = run(Broker(), (OWN, plain(b"1")), (OWN, plain(b"1")), (COMMON, plain(b"2")))
    assert device.used == [b"1", b"1"]
    assert device.records.kept() == plain(b"1")


def test_what_does_not_fit_is_counted_reported_and_not_kept(run):
    broker = Broker()
    device = run(broker, (COMMON, plain(b"1")), (OWN, plain(b"bad")), (COMMON, plain(b"2")))
    assert device.used == [b"1", b"2"], "a refused record of its own keeps no other one away"
    assert device.records.kept() == plain(b"2")
    assert device.counts.errors == Counter({"HeadError": 1})
    ((_, body),) = broker.published
    event = decode_update_event(body)
    assert (event.event, event.version, event.device) == ("head_refused", 2, "pi-1")
    assert event.reason.startswith(f"head {OWN}: bad")


def test_the_key_is_pinned_at_the_first_contact_and_seen_by_every_store(run, tmp_path):
    key, other = generate_key().public, generate_key().public
    earlier = BundleStore(tmp_path, None)
    device = run(Broker([(subjects.RELEASES, subjects.SIGNING_KEY, key.to_text().encode())]), (COMMON, plain(b"1")))
    assert device.store.trusted == earlier.trusted == key
    asyncio.run(earlier.pin_first(Broker([(subjects.RELEASES, subjects.SIGNING_KEY, other.to_text().encode())])))
    assert BundleStore(tmp_path, None).trusted == key


def test_a_broker_that_goes_away_before_the_key_is_known_leaves_the_record_for_later(run):
    with pytest.raises(LinkError):
        run(Broker(breaks_at=[subjects.SIGNING_KEY]), (COMMON, plain(b"1")))


def test_a_damaged_key_is_an_error_at_once(tmp_path):
    (tmp_path / "trusted.pub").write_text("nonsense")
    with pytest.raises(SignatureError):
        BundleStore(tmp_path, None)


def test_present_are_those_that_can_be_read_its_own_first(tmp_path):
    both = Device(tmp_path, Broker([(subjects.HEADS, COMMON, b"1"), (subjects.HEADS, OWN, b"2")]))
    assert asyncio.run(both.records.present()) == [(OWN, b"2"), (COMMON, b"1")]
    one = Device(tmp_path, Broker([(subjects.HEADS, COMMON, b"1")], breaks_at=[OWN]))
    assert asyncio.run(one.records.present()) == [(COMMON, b"1")]
    assert asyncio.run(Device(tmp_path, None).records.present()) == []


def sealed(number, body, key=COMMON):
    return seal("head", key, number, body, SECRET)


def test_an_older_record_is_refused_counted_listed_and_changes_nothing_over_restarts(run, tmp_path):
    trusting = Broker([(subjects.RELEASES, subjects.SIGNING_KEY, SECRET.public.to_text().encode())])
    device = run(trusting, (COMMON, sealed(1, b'"a"')), (COMMON, sealed(2, b'"b"')), (COMMON, sealed(1, b'"a"')))
    assert device.used == [b'"a"', b'"b"']
    assert device.counts.errors == Counter({"OldRecord": 1})
    again = run(trusting, (COMMON, sealed(1, b'"a"')), (COMMON, sealed(2, b'"b"')), (COMMON, sealed(2, b'"c"')))
    assert again.used == [b'"b"'], "the same again is no error"
    assert again.counts.errors == Counter({"OldRecord": 2})
    refusals = [line for line in update_log(tmp_path).events if line["event"] == "head_refused"]
    assert [f"head {COMMON}: number: 1 is older than 2" in line["reason"] for line in refusals] == [True, True, False]


def test_a_record_for_another_device_is_refused_under_this_ones_key(run):
    trusting = Broker([(subjects.RELEASES, subjects.SIGNING_KEY, SECRET.public.to_text().encode())])
    device = run(trusting, (OWN, sealed(1, b'"a"', "pi-2.rpi4")), (OWN, sealed(1, b'"a"', COMMON)))
    assert device.used == []
    assert device.counts.errors == Counter({"HeadError": 2})


def test_a_damaged_file_of_numbers_is_counted_and_the_record_in_use_still_counts(run, tmp_path):
    trusting = Broker([(subjects.RELEASES, subjects.SIGNING_KEY, SECRET.public.to_text().encode())])
    run(trusting, (COMMON, sealed(1, b'"a"')), (COMMON, sealed(2, b'"b"')))
    (tmp_path / "numbers.json").write_bytes(b"damaged")
    device = Device(tmp_path, trusting)
    assert device.records.open_kept(device.records.kept(), "kept") == b'"b"'
    asyncio.run(device.records.take(COMMON, sealed(1, b'"a"'), device.use))
    assert device.used == []
    assert device.counts.errors == Counter({"FormatError": 1, "OldRecord": 1})
    assert [line["event"] for line in update_log(tmp_path).events] == ["numbers_damaged", "head_refused"]


def test_without_a_trusted_key_numbers_say_nothing(run, tmp_path):
    device = run(Broker(), (COMMON, sealed(2, b'"b"')), (COMMON, sealed(1, b'"a"')))
    assert device.used == [b'"b"', b'"a"']
    assert not (tmp_path / "numbers.json").exists()
