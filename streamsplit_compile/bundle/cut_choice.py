"""Chooses the cuts of an encoder that is compiled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from streamsplit_compile.bottleneck.block import layout_with
from streamsplit_compile.cost.cost_model import count_work
from streamsplit_compile.encoder.encoders import LoadedEncoder
from streamsplit_compile.encoder.graph import Candidate
from streamsplit_compile.encoder.segment import CutRefused, split
from streamsplit_compile.encoder.selection import select_cuts, why_useless, with_early_cuts, worthwhile_blocks
from streamsplit_compile.splitter.pricing import server_ms

Notice = Callable[[str], None]
"""Called with one line that the user should know and that does not end the work."""


def choose_cuts(
    encoder: LoadedEncoder, spec: str, notice: Notice = lambda line: None, bottlenecks: bool = False
) -> list[Candidate]:
    """The cuts for `--cuts`, judged by MACs and int8 bytes (PCM16 for the waveform).

    If there will be `bottlenecks`, `auto` uses up the blocks that are worthwhile with early cuts for them. Candidates
    at which the graph cannot be cut are left out; `notice` is called if no cut is worth shipping.
    """
    candidates = list(encoder.graph.candidates)
    while True:
        try:
            segments = split(encoder.graph, candidates)
            break
        except CutRefused as exc:
            if exc.cut == candidates[0].name:
                raise
            notice(f"left out {exc}")
            candidates = [candidate for candidate in candidates if candidate.name != exc.cut]
    work = np.cumsum([0, *(count_work(piece).macs for piece in segments)]).tolist()
    sizes = [float(candidate.values) for candidate in candidates]
    sizes[0] *= 2
    encoder_ms = server_ms(count_work(encoder.graph.module))
    image = next((candidate.name for candidate in candidates if encoder.ends_log_mel(candidate)), None)
    blocks = worthwhile_blocks(encoder_ms)
    cuts = select_cuts(candidates, spec, work, sizes, blocks, image)
    if bottlenecks and spec == "auto":
        cuts = with_early_cuts(candidates, cuts, work, blocks, may_narrow)
    if image is not None and cuts[1].name != image:
        notice(f"devices compute the front end in the graph; with {image} among the cuts they do it faster, by an FFT")
    if reason := why_useless(candidates, cuts, work):
        notice(f"no cut is worth shipping: {reason}; devices send audio or run the whole encoder")
    return cuts


def may_narrow(candidate: Candidate) -> bool:
    """Whether an activation looks as if a bottleneck could narrow it: an image or a sequence of one window."""
    shape = candidate.shape
    return shape[0] == 1 and len(shape) in (3, 4) and layout_with(shape, 1 if len(shape) == 4 else 2) is not None
