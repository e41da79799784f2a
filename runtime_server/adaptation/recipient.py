"""For whom an adaptation is: one device, devices that hear alike, or all devices of a target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from runtime_edge.formats import subjects
from runtime_edge.formats.manifest import BundleInfo
from runtime_edge.formats.records.head import Head

Scope = Literal["device", "alike", "target"]


@dataclass(frozen=True)
class Recipient:
    """One device, those that hear like it, or all devices of a target."""

    target: str
    device: str | None
    """None: all of the target."""
    head: Head
    """What it labels its windows with."""
    alike: tuple[str, ...] = field(default=(), compare=False)
    """The devices that hear alike, itself included; they come and go."""

    @property
    def key(self) -> str:
        """Key of its record in the bucket; that of the devices' founder, if several hear alike."""
        return subjects.table_key(self.target, self.device)

    def each(self) -> list[Recipient]:
        """Those that get a record of their own."""
        return [replace(self, device=device, alike=()) for device in self.alike] or [self]


def find_recipient(
    device: str, target: str | None, heads: Mapping[str, Head], info: BundleInfo, scope: Scope, founder: str = ""
) -> Recipient | str:
    """Whose adaptation a device's windows shape, or why nobody's.

    Args:
        device: its name.
        target: what it last reported as its target.
        heads: the pushed heads, by recipient: `rpi4`, or `rpi4 of pi-1`.
        info: of the bundle that devices run.
        scope: who has an adaptation in common.
        founder: names the devices that hear like this one.
    """
    if target not in info.targets:
        return f"{device}: has not reported a target of this bundle yet"
    head = heads.get(f"{target} of {device}" if scope == "device" else target, heads.get(target))
    if head is None:
        return f"{target}: has no head; push one with `ssc server label --push`"
    if not head.fits(info):
        return f"{target}: its head is for encoder {head.encoder}, devices run {info.encoder.id}"
    if head.scores_by != "softmax":
        return f"{target}: its head has labels that do not exclude each other; adaptation needs a softmax head"
    named: dict[Scope, str | None] = {"device": device, "alike": founder, "target": None}
    return Recipient(target, named[scope], head)


def together(found: Mapping[str, Recipient]) -> dict[str, Recipient]:
    """The recipients of devices that hear alike, by device, each with all of its devices."""
    devices = defaultdict(list)
    for device, recipient in sorted(found.items()):
        devices[recipient.key].append(device)
    return {device: replace(one, alike=tuple(devices[one.key])) for device, one in found.items()}
