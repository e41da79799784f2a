"""The latest windows of every device, from which the trainer draws its batches (docs/method.md, section 5)."""

from __future__ import annotations

import bisect
import hashlib
import math
import threading
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from runtime_edge.errors import UsageError
from runtime_server.training.losses.laplacian import HORIZON

_OVERHEAD_BYTES = 1024  # memory per window besides its tensors, so that empty ones are bounded too
_MAX_BOOTS = 2  # per device: one that restarts in a loop displaces only its own past
_UNCERTAINTY_FLOOR = 0.1  # a window that the device was sure of is still drawn now and then

ADJACENCY = 3
"""Windows of one boot at most this many window indices apart are assumed to hear the same thing."""
Chain = tuple[str, str]
"""A device and one of its boots; window indices are comparable within one."""
_Key = tuple[Chain, int]


@dataclass(frozen=True)
class TrainingWindow:
    """One window as it arrived. The buffer keeps `activation` as a float16 CPU copy."""

    device: str
    boot: str
    index: int
    """Window index, counted from the boot; below 2^63."""
    generation: int
    cut: int
    activation: Tensor
    """[*shape], without a batch axis."""
    uncertainty: float = 1.0
    sequence: int = 0
    """Sequence number of its frame in the broker's stream, from 1; 0 if there is none, which counts as the latest."""
    plain: bool = True
    """Whether the activation was shipped unchanged, not through a bottleneck."""
    in_range: bool = True
    """Whether `activation` is finite and not far outside the calibrated range; otherwise the trainer leaves the window
    out."""

    @property
    def nbytes(self) -> int:
        """Memory that the window occupies, an upper estimate."""
        return self.activation.nbytes + _OVERHEAD_BYTES


@dataclass(frozen=True)
class WindowGroup:
    """The part of a batch that one suffix can run: same generation, cut and activation shape."""

    cut: int
    activations: Tensor
    """float16[n, *shape]."""
    chains: Tensor
    """int64[n], the `chain_number` of each."""
    windows: Tensor
    """int64[n], window indices."""

    def __len__(self) -> int:
        return len(self.windows)


@dataclass(frozen=True)
class BufferSize:
    """The contents of a buffer."""

    windows: int
    nbytes: int
    refused: dict[str, int]
    """Windows that were not accepted, by reason."""


@dataclass
class _DeviceShare:
    """A buffer's contents from one device."""

    nbytes: int = 0
    order: list[tuple[int, _Key]] = field(default_factory=list)
    """Its windows by their position in the stream."""


@dataclass
class TemporalBuffer:
    """A sliding buffer of each device's last `horizon` window indices, within `limit_bytes` in total.

    Late windows are inserted at their place, gaps stay, and duplicates are refused. A device keeps its two latest
    boots. When memory runs out, the device that occupies most of it loses its own window that comes first in the
    stream: however fast it sends, the others keep theirs up to an equal share. The order of the stream counts, not that
    of the calls of `add`: a replay of the stream restores the same contents, and the same windows and `rng` give the
    same batch. May be used from several threads.
    """

    horizon: int = HORIZON
    limit_bytes: int = 1 << 30
    adjacency: int = ADJACENCY
    """Largest distance, in window indices, between windows that are drawn together."""
    refused: Counter[str] = field(default_factory=Counter)
    """How many windows were not accepted: "duplicate", "late" (beyond the horizon), "invalid"."""
    nbytes: int = field(default=0, init=False)
    _windows: dict[_Key, TrainingWindow] = field(default_factory=dict, init=False)
    _devices: dict[str, _DeviceShare] = field(default_factory=dict, init=False)
    _latest: int = field(default=0, init=False)
    """The last position in the stream that was seen."""
    _chains: dict[Chain, list[int]] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __len__(self) -> int:
        return len(self._windows)

    def add(self, window: TrainingWindow) -> bool:
        """Add a window; False, counted in `refused`, for a duplicate, a late or a non-finite one."""
        uncertainty = window.uncertainty if math.isfinite(window.uncertainty) else 1.0
        kept = replace(
            window,
            activation=window.activation.detach().to("cpu", torch.float16, copy=True),  # not a view of a larger tensor
            uncertainty=min(max(uncertainty, 0.0), 1.0),
        )
        with self._lock:
            if not kept.sequence:
                kept = replace(kept, sequence=self._latest + 1)
            reason = self._refusal(kept) or self._forget_boots(kept)
            if reason is not None:
                self.refused[reason] += 1
                return False
            chain = (kept.device, kept.boot)
            indices = self._chains.setdefault(chain, [])
            bisect.insort(indices, kept.index)
            self._windows[chain, kept.index] = kept
            self._latest = max(self._latest, kept.sequence)
            share = self._devices.setdefault(kept.device, _DeviceShare())
            bisect.insort(share.order, (kept.sequence, (chain, kept.index)))
            share.nbytes += kept.nbytes
            self.nbytes += kept.nbytes
            while indices[0] <= indices[-1] - self.horizon:
                self._drop((chain, indices[0]))
            self._trim()
        return True

    def windows(self, device: str) -> list[TrainingWindow]:
        """The device's windows, by boot and window index."""
        with self._lock:
            chains = sorted(chain for chain in self._chains if chain[0] == device)
            return [self._windows[chain, index] for chain in chains for index in self._chains[chain]]

    def size(self) -> BufferSize:
        """The buffer's present size."""
        with self._lock:
            return BufferSize(len(self._windows), self.nbytes, dict(self.refused))

    def counts(self) -> dict[str, int]:
        """How many windows the buffer holds of each device."""
        with self._lock:
            found: Counter[str] = Counter()
            for (device, _), indices in self._chains.items():
                found[device] += len(indices)
            return dict(found)

    def sequences(self) -> list[int]:
        """Positions in the stream of the windows in the buffer, ascending."""
        with self._lock:
            return sorted(sequence for share in self._devices.values() for sequence, _ in share.order)

    def sample_batch(
        self, rng: np.random.Generator, size: int, device: str | None = None, plain: bool = False
    ) -> list[WindowGroup]:
        """Up to `size` distinct windows, at most an equal share of them from each device; with `device` only from that
        one, with `plain` only windows that did not pass a bottleneck.

        The share is `size` divided by the number of devices, rounded up. If some devices have too few windows, the
        others do not make up for them, so a device that sends more does not count for more.

        Within a device, a window is drawn in proportion to `exp(-age / (horizon / 2)) · (0.1 + U)`, where its age is
        counted in window indices behind the newest of its boot. It brings along one of its neighbours in time, at
        whatever cut: with most windows missing, few would otherwise have one. The groups are in order of generation and
        cut.
        """
        if size < 1:
            raise UsageError(f"batch size {size}: at least 1 is needed")
        with self._lock:
            devices = sorted({chain[0] for (chain, _), window in self._windows.items()
                              if device in (None, chain[0]) and (window.plain or not plain)})  # fmt: skip
            order = self._draw(rng, size, devices, plain)
            members: dict[tuple[int, int, tuple[int, ...]], list[TrainingWindow]] = {}
            for window in order:
                members.setdefault(_group_key(window), []).append(window)
            return [_group(members[key]) for key in sorted(members)]

    def _refusal(self, window: TrainingWindow) -> str | None:
        indices = self._chains.get((window.device, window.boot))
        if ((window.device, window.boot), window.index) in self._windows:
            return "duplicate"
        if indices and window.index <= indices[-1] - self.horizon:
            return "late"
        if window.nbytes > self.limit_bytes or not bool(window.activation.isfinite().all()):
            return "invalid"
        return None

    def _forget_boots(self, window: TrainingWindow) -> str | None:
        """Make room for another boot of a device by removing the one whose last window comes first in the stream.

        Returns "late" if that boot is the window's own.
        """
        chain = (window.device, window.boot)
        boots = [other for other in self._chains if other[0] == window.device]
        if chain in boots or len(boots) < _MAX_BOOTS:
            return None
        last = {boot: max(self._windows[boot, index].sequence for index in self._chains[boot]) for boot in boots}
        oldest = min(boots, key=last.__getitem__)
        if window.sequence < last[oldest]:
            return "late"
        for index in list(self._chains[oldest]):
            self._drop((oldest, index))
        return None

    def _trim(self) -> None:
        while self.nbytes > self.limit_bytes:
            largest = max(self._devices.values(), key=lambda share: (share.nbytes, -share.order[0][0]))
            self._drop(largest.order[0][1])

    def _drop(self, key: _Key) -> None:
        chain, index = key
        window = self._windows.pop(key)
        share = self._devices[window.device]
        share.nbytes -= window.nbytes
        self.nbytes -= window.nbytes
        del share.order[bisect.bisect_left(share.order, (window.sequence, key))]
        if not share.order:
            del self._devices[window.device]
        indices = self._chains[chain]
        del indices[bisect.bisect_left(indices, index)]
        if not indices:
            del self._chains[chain]

    def _draw(self, rng: np.random.Generator, size: int, devices: list[str], plain: bool) -> list[TrainingWindow]:
        """A weighted draw without replacement in which devices take turns, each window with a neighbour.

        Adding a Gumbel variate to each log weight and sorting gives the order of such a draw.
        """
        share = -(-size // max(len(devices), 1))
        chosen = {devices[i] for i in rng.permutation(len(devices))[:size]}
        chains = [(chain, self._chains[chain]) for chain in sorted(self._chains) if chain[0] in chosen]
        places = [(chain, index, indices[-1] - index) for chain, indices in chains for index in indices
                  if not plain or self._windows[chain, index].plain]  # fmt: skip
        windows = [self._windows[chain, index] for chain, index, _ in places]
        ages = np.array([age for _, _, age in places])
        unsure = np.array([window.uncertainty for window in windows])
        keys = np.log(_UNCERTAINTY_FLOOR + unsure) - ages / (self.horizon / 2) + rng.gumbel(size=len(windows))
        # Within a turn, the keys' own order would favour devices with uncertain windows; a fair order is drawn instead.
        fair = rng.permutation(len(windows))
        turns: Counter[str] = Counter()
        ranked: list[tuple[int, int, int]] = []
        for position in np.argsort(-keys, kind="stable").tolist():
            device = windows[position].device
            ranked.append((turns[device], int(fair[position]), position))
            turns[device] += 1
        drawn: dict[_Key, TrainingWindow] = {}
        counts: Counter[str] = Counter()
        for _, _, position in sorted(ranked):
            window = windows[position]
            if len(drawn) >= size:
                break
            if _key(window) in drawn or counts[window.device] >= share:
                continue
            drawn[_key(window)] = window
            counts[window.device] += 1
            near = [key for key in self._neighbours(window)
                    if key not in drawn and (not plain or self._windows[key].plain)]  # fmt: skip
            if near and len(drawn) < size and counts[window.device] < share:
                key = near[rng.integers(len(near))]
                drawn[key] = self._windows[key]
                counts[window.device] += 1
        return list(drawn.values())

    def _neighbours(self, window: TrainingWindow) -> list[_Key]:
        """The windows in the buffer that are near in time."""
        chain, index = _key(window)
        around = range(index - self.adjacency, index + self.adjacency + 1)
        return [(chain, other) for other in around if other != index and (chain, other) in self._windows]


def chain_number(device: str, boot: str) -> int:
    """A number below 2^63 for a boot of a device: the same in every batch, rank and process."""
    digest = hashlib.blake2b(f"{device}\0{boot}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _group(windows: list[TrainingWindow]) -> WindowGroup:
    return WindowGroup(
        cut=windows[0].cut,
        activations=torch.stack([w.activation for w in windows]),
        chains=torch.tensor([chain_number(w.device, w.boot) for w in windows]),
        windows=torch.tensor([w.index for w in windows]),
    )


def _key(window: TrainingWindow) -> _Key:
    return (window.device, window.boot), window.index


def _group_key(window: TrainingWindow) -> tuple[int, int, tuple[int, ...]]:
    return window.generation, window.cut, tuple(window.activation.shape)
