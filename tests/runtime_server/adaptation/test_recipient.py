"""Whose adaptation a device shapes, and why nobody's."""

import msgspec
import pytest

from runtime_server.adaptation.recipient import Recipient, find_recipient, together


@pytest.fixture
def info(adaptable_bundle):
    return adaptable_bundle.manifest.info


def test_a_device_has_its_own_or_that_of_its_target(recipient, info):
    own = msgspec.structs.replace(recipient.head, created_by="own")
    heads = {"rpi4": recipient.head, "rpi4 of pi-2": own}
    found = [find_recipient(device, "rpi4", heads, info, "device") for device in ("pi-1", "pi-2")]
    assert found == [Recipient("rpi4", "pi-1", recipient.head), Recipient("rpi4", "pi-2", own)]
    assert [one.key for one in found] == ["pi-1.rpi4", "pi-2.rpi4"]
    shared = [find_recipient(device, "rpi4", heads, info, "target") for device in ("pi-1", "pi-2")]
    assert shared == [Recipient("rpi4", None, recipient.head)] * 2
    assert shared[0].key == "_all.rpi4"


@pytest.mark.parametrize(
    ("target", "changes", "reason"),
    [
        (None, {}, "pi-1: has not reported a target"),
        ("", {}, "pi-1: has not reported a target"),
        ("m2", {}, "pi-1: has not reported a target"),
        ("rpi4", None, "rpi4: has no head; push one"),
        ("rpi4", {"encoder": "another"}, "rpi4: its head is for encoder another, devices run toys:Tiny"),
        ("rpi4", {"scores_by": "sigmoid"}, "rpi4: its head has labels that do not exclude each other"),
    ],
)
def test_what_is_missing_is_named(recipient, info, target, changes, reason):
    heads = {} if changes is None else {"rpi4": msgspec.structs.replace(recipient.head, **changes)}
    assert find_recipient("pi-1", target, heads, info, "device").startswith(reason)


def test_devices_that_hear_alike_are_one_recipient(recipient, info):
    own = msgspec.structs.replace(recipient.head, created_by="own")
    heads = {"rpi4": recipient.head, "rpi4 of pi-2": own}
    founders = {"pi-1": "pi-2", "pi-2": "pi-2", "pi-3": "pi-3"}
    found = {name: find_recipient(name, "rpi4", heads, info, "alike", founder) for name, founder in founders.items()}
    grouped = together(found)
    assert {name: (one.key, one.alike) for name, one in grouped.items()} == {
        "pi-1": ("pi-2.rpi4", ("pi-1", "pi-2")),
        "pi-2": ("pi-2.rpi4", ("pi-1", "pi-2")),
        "pi-3": ("pi-3.rpi4", ("pi-3",)),
    }
    assert all(one.head == recipient.head for one in grouped.values()), "a head of one device's own is not for others"
    assert grouped["pi-1"] == found["pi-1"], "who is in a group does not make it another"
    assert [one.key for one in grouped["pi-1"].each()] == ["pi-1.rpi4", "pi-2.rpi4"]
    assert found["pi-3"].each() == [found["pi-3"]]
