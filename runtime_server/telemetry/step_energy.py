"""The total energy of training steps, always with its source."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from runtime_edge.errors import SscError
from runtime_server.telemetry.energy import EnergySource

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class EnergyUse:
    """The energy of some steps."""

    source: str
    steps: int = 0
    seconds: float = 0.0
    joules: float = 0.0
    """Including the machine's power at rest."""
    idle_w: float | None = None

    @property
    def above_idle_joules(self) -> float | None:
        """Energy above what the machine would have used at rest; None if that is unknown."""
        return None if self.idle_w is None else self.joules - self.idle_w * self.seconds

    @property
    def joules_a_step(self) -> float | None:
        """The mean; None before the first step."""
        return self.joules / self.steps if self.steps else None

    @property
    def above_idle_a_step(self) -> float | None:
        """The mean above idle; None before the first step, and without `idle_w`."""
        above = self.above_idle_joules
        return above / self.steps if self.steps and above is not None else None

    def told(self) -> dict[str, Any]:
        """All figures for a status, with the means of a step in J."""
        return {
            **asdict(self),
            "above_idle_joules": self.above_idle_joules,
            "joules_a_step": self.joules_a_step,
            "above_idle_a_step": self.above_idle_a_step,
        }


class StepEnergy:
    """Adds up the energy of steps. Used by the thread that trains; other threads may read `use`."""

    def __init__(self, source: EnergySource, clock: Callable[[], float] = time.monotonic) -> None:
        self.use = EnergyUse(source.name, idle_w=source.idle_w)
        self._source: EnergySource | None = source
        self._clock = clock

    @contextmanager
    def step(self) -> Iterator[None]:
        """Measure one step. A source that fails ends the measurement with a warning, not the training."""
        before, began = self._read(), self._clock()
        yield
        seconds, after = self._clock() - began, self._read()
        if before is not None and after is not None:
            use = self.use
            self.use = replace(
                use, steps=use.steps + 1, seconds=use.seconds + seconds, joules=use.joules + after - before
            )

    def _read(self) -> float | None:
        if self._source is None:
            return None
        try:
            return self._source.joules()
        except SscError as exc:
            _LOG.warning("the energy of training is no longer counted: %s", exc)
            self._source = None
            return None
