"""Which windows of which device have been taken: exactly-once beyond the broker's memory of duplicates."""

from __future__ import annotations

import bisect
from collections import OrderedDict

import msgspec

_MAX_CHAINS = 20_000


class Ledger:
    """Window indices seen for each boot of each device, as sorted runs; small because indices are mostly dense."""

    def __init__(self) -> None:
        self._chains: OrderedDict[str, list[list[int]]] = OrderedDict()

    def add(self, device: str, boot: str, index: int) -> bool:
        """Note a window; False when it was noted before."""
        chain = f"{device}.{boot}"
        runs = self._chains.setdefault(chain, [])
        self._chains.move_to_end(chain)
        if len(self._chains) > _MAX_CHAINS:
            self._chains.popitem(last=False)
        place = bisect.bisect_right(runs, [index, 1 << 62])
        before = runs[place - 1] if place else None
        if before is not None and index <= before[1]:
            return False
        after = runs[place] if place < len(runs) else None
        touches_before = before is not None and before[1] + 1 == index
        touches_after = after is not None and after[0] == index + 1
        if touches_before and touches_after:
            assert before is not None
            before[1] = runs.pop(place)[1]
        elif touches_before:
            assert before is not None
            before[1] = index
        elif touches_after:
            assert after is not None
            after[0] = index
        else:
            runs.insert(place, [index, index])
        return True

    def count(self, device: str) -> int:
        """Distinct windows seen of a device, over all its boots."""
        chains = (runs for chain, runs in self._chains.items() if chain.rpartition(".")[0] == device)
        return sum(last - first + 1 for runs in chains for first, last in runs)

    def counts(self) -> dict[str, int]:
        """Distinct windows seen by device."""
        devices = dict.fromkeys(chain.rpartition(".")[0] for chain in self._chains)
        return {device: self.count(device) for device in devices}

    def to_bytes(self) -> bytes:
        """JSON."""
        return msgspec.json.encode(self._chains)

    @classmethod
    def from_bytes(cls, data: bytes) -> Ledger:
        """Raises msgspec.MsgspecError for anything else than what `to_bytes` wrote."""
        ledger = cls()
        ledger._chains = OrderedDict(msgspec.json.decode(data, type=dict[str, list[list[int]]]))
        return ledger
