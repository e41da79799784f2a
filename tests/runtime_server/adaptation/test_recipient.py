"""Whose adaptation a device shapes, and why nobody's."""

import msgspec
import pytest

from runtime_server.adaptation.recipient import Recipient, find_recipient


@pytest.fixture
def info(adaptable_bundle):
    return adaptable_bundle.manifest.info


def test_a_device_has_its_own_or_that_of_its_target(recipient, info):
    own = msgspec.structs.replace(recipient.head, created_by="own")
    heads = {"rpi4": recipient.head, "rpi4 of pi-2": own}
    found = [find_recipient(device, "rpi4", heads, info, False) for device in ("pi-1", "pi-2")]
    assert found == [Recipient("rpi4", "pi-1", recipient.head), Recipient("rpi4", "pi-2", own)]
    assert [one.key for one in found] == ["pi-1.rpi4", "pi-2.rpi4"]
    shared = [find_recipient(device, "rpi4", heads, info, True) for device in ("pi-1", "pi-2")]
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
    assert find_recipient("pi-1", target, heads, info, False).startswith(reason)
