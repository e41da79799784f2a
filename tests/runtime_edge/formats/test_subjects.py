import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.errors import UsageError
from runtime_edge.formats import subjects

devices = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)


@given(devices)
def test_a_devices_frames_go_to_its_partition(device):
    assert subjects.check_device(device) == device
    partition = subjects.partition(device)
    assert 0 <= partition < subjects.PARTITIONS
    subject = subjects.frames(device)
    assert subject == f"act.{partition}.{device}"
    assert subject.startswith(subjects.partition_filter(partition).removesuffix(">"))


def test_partitions_are_all_used():
    counts = [0] * subjects.PARTITIONS
    for number in range(1000):
        counts[subjects.partition(f"pi-{number}")] += 1
    assert min(counts) > 150


def test_the_partition_of_a_device_never_changes():
    # CRC-32 of "123456789" is 0xCBF43926 by its definition.
    assert subjects.partition("123456789") == 0xCBF43926 % subjects.PARTITIONS


@pytest.mark.parametrize("device", ["", "-a", "A", "a.b", "a b", "a*", ">", "a/b", "é", "a\n", "a" * 64, "a_b"])
def test_a_name_that_cannot_stand_in_a_subject_is_refused(device):
    with pytest.raises(UsageError, match=re.escape(f"device {device!r}")):
        subjects.check_device(device)


@given(devices, st.from_regex(r"[A-Za-z0-9]{1,64}", fullmatch=True), st.integers(0, 2**63))
def test_a_device_is_answered_below_its_own_inbox_and_no_others(device, connection, window):
    reply = f"{subjects.inbox(device)}.{connection}.{window}"
    assert subjects.is_reply(device, reply)
    for other in (device + "x", device[:-1] + ("b" if device[-1] == "a" else "a")):
        assert not subjects.is_reply(other, reply)


@pytest.mark.parametrize(
    "rest", ["", ".", ".a", ".a.", ".a.b", ".*.1", ".>", ".a.>", ".a b.1", ".a.1.2", ".a.1\n", "x.a.1"]
)
def test_a_reply_subject_of_another_shape_is_not_answered(rest):
    assert not subjects.is_reply("pi-1", "_INBOX.pi-1" + rest)


def test_message_ids_tell_windows_boots_and_devices_apart():
    ids = {subjects.message_id(d, b, w) for d in ("a", "b") for b in ("0f", "10") for w in (1, 2, 11)}
    assert len(ids) == 12


def test_objects_are_named_by_their_digest():
    digest = "sha256:" + "ab" * 32
    assert subjects.asset_object(f"{digest}/model.onnx") == f"assets/sha256-{'ab' * 32}/model.onnx"
    assert subjects.manifest_object(digest) == f"manifests/sha256-{'ab' * 32}"
    assert subjects.events("pi-1") == "evt.pi-1"
    assert subjects.table_key("rpi4") == "_all.rpi4"
    assert subjects.table_key("rpi4", "pi-1") == "pi-1.rpi4"
    assert not subjects.is_device(subjects.ALL_DEVICES)
    assert subjects.bucket_stream(subjects.TABLES) == "KV_tables"
    assert subjects.bucket_subject(subjects.TABLES, "rpi4") == "$KV.tables.rpi4"
    assert subjects.news(subjects.TABLES, "rpi4") == "news.tables.rpi4"


def test_a_boot_token_cannot_be_guessed_and_can_stand_in_a_message_id():
    tokens = {subjects.new_boot() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(subjects.is_boot(token) for token in tokens)
    assert all(len({token[place] for token in tokens}) == 32 for place in range(12))
    assert {len(token) for token in tokens} == {12}, "60 bits, 5 in each character"


@given(
    boot=st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True),
    window=st.integers(0, (1 << 40) - 1),
    connection=st.from_regex(r"([A-Za-z0-9]{1,64})?", fullmatch=True),
    embedding=st.booleans(),
)
def test_an_envelope_says_which_window_it_is_and_what_is_asked(boot, window, connection, embedding):
    message_id = subjects.message_id("pi-1", boot, window)
    found = subjects.read_envelope(subjects.envelope(message_id, "pi-1", connection, embedding), "act.2.pi-1")

    assert found.message_id == message_id
    assert found.reply == (f"_INBOX.pi-1.{connection}.{window}" if connection else "")
    assert found.asked == ("embedding" if connection and embedding else "trouble")
    assert not found.reply or subjects.is_reply("pi-1", found.reply)


@given(st.text(max_size=80))
def test_no_envelope_asks_for_an_answer_to_anybody_else(text):
    found = subjects.read_envelope({subjects.ENVELOPE_HEADER: text}, "act.2.pi-1")
    assert not found.reply or subjects.is_reply("pi-1", found.reply)
    assert not found.message_id or found.message_id.startswith("pi-1.")


@pytest.mark.parametrize("header", [subjects.IDENTITY_HEADER, subjects.BROKER_ID_HEADER])
def test_the_envelope_of_an_earlier_device_is_read(header):
    headers = {header: "pi-1.boot.7", subjects.REPLY_HEADER: "_INBOX.pi-1.abc.7"}
    assert subjects.read_envelope(headers, "act.2.pi-1") == ("pi-1.boot.7", "_INBOX.pi-1.abc.7", "everything")
    assert subjects.read_envelope({**headers, subjects.REPLY_HEADER: "_INBOX.pi-2.abc.7"}, "act.2.pi-1").reply == ""
    assert subjects.read_envelope(None, "act.2.pi-1") == ("", "", "everything")


def test_a_frame_from_another_devices_spool_keeps_its_name():
    assert subjects.envelope("other.boot.3", "pi-1", "abc") == {subjects.IDENTITY_HEADER: "other.boot.3"}
