"""Training as TensorBoard event files. The only file that imports tensorboardX."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from runtime_edge.errors import MissingExtra, UsageError
from runtime_server.releases.release_gate import ReleaseOutcome
from runtime_server.training.trainer import StepMetrics


class Board:
    """Writes scalars by training step into a directory that `tensorboard --logdir` shows. Used by one thread.

    Raises:
        MissingExtra: tensorboardX is not installed.
        UsageError: the directory cannot be written to.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise MissingExtra("tensorboardX", "tensorboard") from None
        try:
            self._writer = SummaryWriter(str(directory), flush_secs=10)
        except OSError as exc:
            raise UsageError(
                f"--tensorboard {directory}: {exc.strerror}; give a directory that can be created"
            ) from None
        self._last_s = time.monotonic()

    def step(self, metrics: StepMetrics) -> None:
        """Write the metrics of one training step."""
        now_s = time.monotonic()
        values = {f"loss/{term}": value for term, value in metrics.losses.items()}
        values |= {f"embeddings/{name}": value for name, value in asdict(metrics.geometry).items()}
        values |= {"step/gradient_norm": metrics.gradient_norm, "step/seconds": metrics.seconds}
        values["step/per_second"] = 1.0 / max(now_s - self._last_s, 1e-9)
        self._last_s = now_s
        self._write(values, metrics.step)

    def judged(self, outcome: ReleaseOutcome) -> None:
        """Write the outcome of one attempt at a release."""
        values = {"release/released": float(outcome.released)}
        for which, quality in (("released", outcome.before), ("candidate", outcome.after)):
            if quality is not None:
                told = {name: value for name, value in asdict(quality).items() if isinstance(value, float)}
                values |= {f"release/{which}/{name}": value for name, value in told.items()}
        self._write(values, outcome.steps)

    def close(self) -> None:
        """Write what is still buffered."""
        self._writer.close()

    def _write(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
