"""For whom an adaptation is: one device, or all devices of a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime_edge.formats import subjects
from runtime_edge.formats.manifest import BundleInfo
from runtime_edge.formats.records.head import Head


@dataclass(frozen=True)
class Recipient:
    """One device, or all devices of a target."""

    target: str
    device: str | None
    """None: all of the target."""
    head: Head
    """What it labels its windows with."""

    @property
    def key(self) -> str:
        """Key of its record in the bucket."""
        return subjects.table_key(self.target, self.device)


def find_recipient(
    device: str, target: str | None, heads: Mapping[str, Head], info: BundleInfo, shared: bool
) -> Recipient | str:
    """Whose adaptation a device's windows shape, or why nobody's.

    Args:
        device: its name.
        target: what it last reported as its target.
        heads: the pushed heads, by recipient: `rpi4`, or `rpi4 of pi-1`.
        info: of the bundle that devices run.
        shared: whether all devices of a target have one adaptation.
    """
    if target not in info.targets:
        return f"{device}: has not reported a target of this bundle yet"
    head = heads.get(target) if shared else heads.get(f"{target} of {device}", heads.get(target))
    if head is None:
        return f"{target}: has no head; push one with `ssc server label --push`"
    if not head.fits(info):
        return f"{target}: its head is for encoder {head.encoder}, devices run {info.encoder.id}"
    if head.scores_by != "softmax":
        return f"{target}: its head has labels that do not exclude each other; adaptation needs a softmax head"
    return Recipient(target, None if shared else device, head)
