"""Selects which cut candidates become cuts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from runtime_edge.errors import BundleError, UsageError
from runtime_edge.formats.manifest import Manifest
from streamsplit_compile.encoder.graph import Candidate

_FREE = 1e-4
MIN_BLOCK_SHARE = 0.01
"""A block with a smaller share of the encoder's work than this is not worth a session of its own."""
CHEAP_SHARE = 0.05
"""A front end with at most this share of the work becomes a block in addition to the worthwhile ones."""
BOUNDARY_US = 30.0
"""Cost of another block on a desktop: a session call, memory that is not in the caches and, around a cut residual
connection, an addition and layout changes that the runtime would have fused. Measured 40 to 60 us."""
BOUNDARY_SHARE = 0.035
"""All boundaries together cost at most this share of the encoder, as predicted for a desktop."""
MIN_RATIO = 1.5
"""The work up to a cut that was added for its bottleneck, over that up to the cut before it."""
MAX_AUTO_CUTS = 6
"""Including the waveform and the embedding. A splitter table has several encodings and widths for each cut."""


def worthwhile_blocks(encoder_ms: float) -> int:
    """How many blocks `auto` makes of an encoder that is predicted to take this many milliseconds."""
    return min(MAX_AUTO_CUTS - 1, 1 + max(1, int(encoder_ms * 1e3 * BOUNDARY_SHARE / BOUNDARY_US)))


def select_cuts(
    candidates: Sequence[Candidate],
    spec: str,
    work: Sequence[float],
    wire_bytes: Sequence[float],
    auto_blocks: int = MAX_AUTO_CUTS - 1,
    front_end: str | None = None,
) -> list[Candidate]:
    """Cuts for `--cuts auto|all|N|name,...`, always with the waveform first and the embedding last.

    `work[i]` is the cumulative device work up to candidate i (any unit), `wire_bytes[i]` the bytes shipped there.
    `auto` makes at most `auto_blocks` blocks, and one more if the candidate named `front_end` ends a front end that
    devices compute natively. Raises UsageError for a name or number that does not fit.
    """
    last = len(candidates) - 1
    if spec == "all":
        chosen = list(range(last + 1))
    elif spec == "auto":
        native = next((index for index in range(1, last) if candidates[index].name == front_end), None)
        useful = _useful(candidates, work, wire_bytes, native)
        cheap = native is not None or _is_cheap_front_end(useful, work, wire_bytes)
        blocks = min(auto_blocks + cheap, MAX_AUTO_CUTS - 1)
        least = 0.0 if native is not None else MIN_BLOCK_SHARE
        chosen = _merge(useful, work, lambda share, count: share >= MIN_BLOCK_SHARE and count <= blocks, cheap, least)
    elif spec.isdecimal():
        blocks = int(spec)
        if not 1 <= blocks <= last:
            raise UsageError(f"--cuts {spec}: this encoder can be cut into 1 to {last} blocks")
        useful = _useful(candidates, work, wire_bytes)
        start = useful if len(useful) > blocks else list(range(last + 1))
        chosen = _merge(start, work, lambda share, count: count <= blocks)
    else:
        chosen = _named(candidates, spec)
    return [candidates[index] for index in chosen]


def with_early_cuts(
    candidates: Sequence[Candidate],
    cuts: Sequence[Candidate],
    work: Sequence[float],
    blocks: int,
    narrows: Callable[[Candidate], bool],
) -> list[Candidate]:
    """Add cuts for bottlenecks, up to so many blocks, between the first inner cut and the embedding.

    A bottleneck ships as few bytes early as late, so early cuts save the device most work. Each added cut is the module
    boundary that best halves the gap between two neighbours, in ratios of work; one that would be within MIN_RATIO of a
    neighbour is not added. `narrows` says where a bottleneck fits; `work[i]` is as in `select_cuts`.
    """
    if len(cuts) < 3:
        return list(cuts)
    shares = [max(done / max(work[-1], 1e-12), MIN_BLOCK_SHARE) for done in work]
    chosen = [candidates.index(cut) for cut in cuts]
    inner = [index for index in range(chosen[1] + 1, len(candidates) - 1) if candidates[index].boundary]
    fitting = [
        index
        for index, following in itertools.pairwise([*inner, len(candidates) - 1])
        if narrows(candidates[index])
        and not (  # a convolution before its norm, activation or pooling
            candidates[index].values >= candidates[following].values
            and work[following] - work[index] <= _FREE * work[-1]
        )
    ]
    while len(chosen) <= blocks:
        gaps = {
            index: min(shares[index] / shares[before], shares[after] / shares[index])
            for before, after in itertools.pairwise(chosen)
            for index in fitting
            if before < index < after
        }
        best = max(gaps, key=gaps.__getitem__, default=None)
        if best is None or gaps[best] < MIN_RATIO:
            break
        chosen = sorted([*chosen, best])
    return [candidates[index] for index in chosen]


def cuts_of(candidates: Sequence[Candidate], manifest: Manifest, source: str) -> list[Candidate]:
    """The candidates that a bundle was cut at. Raises BundleError when it was compiled from another graph."""
    by_node = {candidate.node: candidate for candidate in candidates}
    found = []
    for cut in manifest.info.cuts:
        candidate = by_node.get(cut.node)
        if candidate is None or candidate.shape != cut.shape or candidate.name != cut.name:
            raise BundleError(f"{source}: cut {cut.name} does not exist in this encoder; compile it again")
        found.append(candidate)
    return found


def _useful(
    candidates: Sequence[Candidate], work: Sequence[float], wire_bytes: Sequence[float], first: int | None = None
) -> list[int]:
    """Drop a candidate if an earlier one, which costs the device no more, ships no more bytes.

    Only module boundaries and the end of the front end are considered, if there are any: other values are intermediate
    results (such as a power spectrum before its logarithm), which quantise badly. Of boundaries with the same bytes and
    almost no work between them the last is kept, so that a cut comes after a convolution's norm and activation, not
    before. With `first`, that candidate is kept and all before it are dropped.
    """
    last = len(candidates) - 1
    inner = list(range(1, last))
    considered = [index for index in inner if candidates[index].boundary] or inner
    kept = [0] if first is None else [0, first]
    since = 0.0
    for index in considered:
        if first is not None and index <= first:
            continue
        if wire_bytes[index] < min(wire_bytes[0], wire_bytes[kept[-1]]):
            kept.append(index)
            since = work[index]
        elif (
            len(kept) > 1
            and kept[-1] != first
            and wire_bytes[index] == wire_bytes[kept[-1]]
            and work[index] - since <= _FREE * work[-1]
        ):
            kept[-1] = index
    return [*kept, last]


def _is_cheap_front_end(useful: Sequence[int], work: Sequence[float], wire_bytes: Sequence[float]) -> bool:
    """Whether the first useful cut costs almost nothing and ships features, not just the audio in fewer bits."""
    first = useful[1]
    return len(useful) > 2 and wire_bytes[first] < wire_bytes[0] / 2 and work[first] <= CHEAP_SHARE * work[-1]


def _merge(
    chosen: list[int],
    work: Sequence[float],
    enough: Callable[[float, int], bool],
    keep_first: bool = False,
    least: float = MIN_BLOCK_SHARE,
) -> list[int]:
    """Merge the lightest block into a neighbour until `enough` accepts its share of the work or the number of blocks.

    With `keep_first` the first block is kept, however light, unless the second has less than the share `least`; those
    two are then merged.
    """
    chosen = list(chosen)
    first = 1 if keep_first else 0
    while len(chosen) > 2 + first:
        shares = [(work[b] - work[a]) / max(work[-1], 1e-12) for a, b in itertools.pairwise(chosen)]
        lightest = min(range(first, len(shares)), key=shares.__getitem__)
        if enough(shares[lightest], len(shares)):
            break
        # The earlier of the block's two ends is dropped: the later one ships less for nearly the same work.
        goes = max(lightest, 1)
        if keep_first and lightest == 1 and shares[1] >= least:
            goes = 2
        chosen.pop(goes)
    return chosen


def why_useless(candidates: Sequence[Candidate], cuts: Sequence[Candidate], work: Sequence[float]) -> str | None:
    """The reason why none of the chosen cuts is worth shipping; None if one is.

    `work[i]` is the cumulative device work up to candidate i; a cut counts with its int8 bytes, the audio with PCM16.
    """
    audio = 2 * cuts[0].values
    if any(cut.values < audio for cut in cuts[1:-1]):
        return None
    inner = range(1, len(candidates) - 1)
    if not inner:
        return "no single tensor crosses between the waveform and the embedding"
    computed = [index for index in inner if work[index] > _FREE * work[-1]]
    smallest = min(computed or inner, key=lambda index: candidates[index].values)
    size, share = candidates[smallest].values, work[smallest] / max(work[-1], 1e-12)
    where = f"the smallest, {candidates[smallest].name}, has {size} bytes, the audio {audio}"
    return where if size >= audio else f"{where}, but comes after {share:.0%} of the work"


def _named(candidates: Sequence[Candidate], spec: str) -> list[int]:
    by_name = {candidate.name: index for index, candidate in enumerate(candidates)}
    wanted = {0, len(candidates) - 1}
    for name in filter(None, (part.strip() for part in spec.split(","))):
        if name not in by_name:
            raise UsageError(f"--cuts: no cut {name!r}; this encoder has {', '.join(by_name)}")
        wanted.add(by_name[name])
    return sorted(wanted)
