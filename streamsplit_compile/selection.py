"""Which cut candidates become cuts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from runtime_edge.errors import BundleError, UsageError
from runtime_edge.manifest import Manifest
from streamsplit_compile.graph import Candidate

MIN_BLOCK_SHARE = 0.01
"""A block with less of the encoder's work than this is not worth a session of its own."""


def select_cuts(
    candidates: Sequence[Candidate], spec: str, work: Sequence[float], wire_bytes: Sequence[float]
) -> list[Candidate]:
    """Cuts for `--cuts auto|all|N|name,...`, always with the waveform first and the embedding last.

    `work[i]` is the cumulative device work up to candidate i (any unit), `wire_bytes[i]` what it ships.
    Raises UsageError for a name or number that does not fit.
    """
    last = len(candidates) - 1
    if spec == "all":
        chosen = list(range(last + 1))
    elif spec == "auto":
        chosen = _merge(_useful(candidates, wire_bytes), work, lambda share, count: share >= MIN_BLOCK_SHARE)
    elif spec.isdigit():
        blocks = int(spec)
        if not 1 <= blocks <= last:
            raise UsageError(f"--cuts {spec}: this encoder can be cut into 1 to {last} blocks")
        useful = _useful(candidates, wire_bytes)
        start = useful if len(useful) > blocks else list(range(last + 1))
        chosen = _merge(start, work, lambda share, count: count <= blocks)
    else:
        chosen = _named(candidates, spec)
    return [candidates[index] for index in chosen]


def cuts_of(candidates: Sequence[Candidate], manifest: Manifest, source: str) -> list[Candidate]:
    """The candidates a bundle was cut at. Raises BundleError when it was compiled from another graph."""
    by_node = {candidate.node: candidate for candidate in candidates}
    found = []
    for cut in manifest.info.cuts:
        candidate = by_node.get(cut.node)
        if candidate is None or candidate.shape != cut.shape or candidate.name != cut.name:
            raise BundleError(f"{source}: cut {cut.name} does not exist in this encoder; compile it again")
        found.append(candidate)
    return found


def _useful(candidates: Sequence[Candidate], wire_bytes: Sequence[float]) -> list[int]:
    """Drop a candidate when an earlier one, which costs the device no more, ships no more bytes.

    Only module boundaries are considered where there are any: inside a module stand values that were never meant
    to be looked at (a power spectrum before its logarithm), which quantise badly.
    """
    last = len(candidates) - 1
    inner = [candidate.position for candidate in candidates[1:-1]]
    considered = [index for index in inner if candidates[index].boundary] or inner
    kept = [0]
    for index in considered:
        if wire_bytes[index] < wire_bytes[kept[-1]]:
            kept.append(index)
    return [*kept, last]


def _merge(chosen: list[int], work: Sequence[float], enough: Callable[[float, int], bool]) -> list[int]:
    """Merge the lightest block into a neighbour until every block, or their number, is as wanted."""
    chosen = list(chosen)
    while len(chosen) > 2:
        shares = [(work[b] - work[a]) / max(work[-1], 1e-12) for a, b in itertools.pairwise(chosen)]
        lightest = min(range(len(shares)), key=shares.__getitem__)
        if enough(shares[lightest], len(shares)):
            break
        # Of the block's two ends the earlier one goes: the later ships less for nearly the same work.
        chosen.pop(lightest if lightest > 0 else 1)
    return chosen


def _named(candidates: Sequence[Candidate], spec: str) -> list[int]:
    by_name = {candidate.name: candidate.position for candidate in candidates}
    wanted = {0, len(candidates) - 1}
    for name in filter(None, (part.strip() for part in spec.split(","))):
        if name not in by_name:
            raise UsageError(f"--cuts: no cut {name!r}; this encoder has {', '.join(by_name)}")
        wanted.add(by_name[name])
    return sorted(wanted)
