"""Chooses the cuts of an encoder that is compiled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from streamsplit_compile.cost.cost_model import count_work
from streamsplit_compile.encoder.encoders import LoadedEncoder
from streamsplit_compile.encoder.graph import Candidate
from streamsplit_compile.encoder.segment import CutRefused, split
from streamsplit_compile.encoder.selection import select_cuts, why_useless, worthwhile_blocks
from streamsplit_compile.splitter.pricing import server_ms

Notice = Callable[[str], None]
"""Called with one line that the user should know and that does not end the work."""


def choose_cuts(encoder: LoadedEncoder, spec: str, notice: Notice = lambda line: None) -> list[Candidate]:
    """The cuts for `--cuts`, judged by MACs and int8 bytes (PCM16 for the waveform).

    Candidates at which the graph cannot be cut are left out; `notice` is called if no cut is worth shipping.
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
    cuts = select_cuts(candidates, spec, work, sizes, worthwhile_blocks(encoder_ms), image)
    if image is not None and cuts[1].name != image:
        notice(f"devices compute the front end in the graph; with {image} among the cuts they do it faster, by an FFT")
    if reason := why_useless(candidates, cuts, work):
        notice(f"no cut is worth shipping: {reason}; devices send audio or run the whole encoder")
    return cuts
