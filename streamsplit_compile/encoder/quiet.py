"""Silences the output of libraries while they work."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let nothing reach stdout, stderr, the log or the user's warnings, whether Python or C++ writes it.

    This holds for the whole process: the file descriptors are redirected while the block runs.
    """
    level = logging.root.manager.disable
    _flush()
    saved = {number: os.dup(number) for number in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    logging.disable(logging.CRITICAL)
    try:
        for number in saved:
            os.dup2(nowhere, number)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        _flush()
        for number, copy in saved.items():
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
        logging.disable(level)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
