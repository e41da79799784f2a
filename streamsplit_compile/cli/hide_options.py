"""`--hide words,speakers --recordings DIR` of `ssc compile`: what trained bottlenecks should not tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import click
import numpy as np

from runtime_edge.errors import UsageError
from runtime_edge.formats.encoder.bottleneck_info import MAX_NOISE
from streamsplit_compile.audit.spoken_recordings import read_spoken
from streamsplit_compile.bottleneck.hiding import Label, LabelledWindows
from streamsplit_compile.cli.options import PathParam, together

hide_options = together(
    click.option("--hide", help="words, speakers or both, comma-separated: what --bottlenecks should not tell."),
    click.option(
        "--recordings", type=PathParam(), help="With --hide: directory of spoken words, WORD/SPEAKER-TAKE.flac."
    ),
    click.option(
        "--latent-noise",
        default=0.0,
        show_default=True,
        type=click.FloatRange(0, MAX_NOISE),
        help="Deviation of the noise that devices add to bottlenecks' values, in steps.",
    ),
)
"""`--hide`, the recordings that it needs, and `--latent-noise`."""


def hidden_labels(hide: str | None, recordings: Path | None, bottlenecks: bool) -> Sequence[Label]:
    """The kinds of labels to hide; none without `--hide`. Raises UsageError."""
    known: tuple[Label, ...] = get_args(Label)
    if hide is None:
        if recordings is not None:
            raise UsageError("--recordings: they are for --hide; give --hide words or leave them out")
        return ()
    names = [part.strip() for part in hide.split(",") if part.strip()]
    if not names or any(name not in known for name in names):
        raise UsageError(f"--hide {hide}: expected some of {', '.join(known)}")
    if not bottlenecks:
        raise UsageError("--hide: bottlenecks are trained for it; give --bottlenecks")
    if recordings is None:
        raise UsageError("--hide: it is learnt from spoken words; give --recordings DIR (WORD/SPEAKER-TAKE.flac)")
    return tuple(name for name in known if name in names)


def labelled_windows(hidden: Sequence[Label], recordings: Path, sample_rate: int, samples: int) -> LabelledWindows:
    """One window of `samples` of each recording, with its labels. Raises UsageError, FormatError or SourceError.

    The recordings that an audit of the same directory judges are left out.
    """
    spoken = read_spoken(recordings, sample_rate, samples)
    known = ~spoken.test
    every = {"words": spoken.words, "speakers": spoken.speakers}
    return LabelledWindows(
        spoken.windows[known], {name: np.unique(every[name][known], return_inverse=True)[1] for name in hidden}
    )
