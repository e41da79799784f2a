"""The demo's scenario: devices on changing links, and one that ships nothing."""

from __future__ import annotations

from dataclasses import dataclass

from runtime_server.harness.shaper import Phase


@dataclass(frozen=True)
class DemoDevice:
    """One device process and its emulated link."""

    name: str
    target: str
    phases: tuple[Phase, ...]
    one_way_ms: float
    hears: int
    """Devices with the same number hear the same recordings in the same order."""
    swapped: bool = False
    """Whether it gets another splitter table half-way."""
    alone: bool = False
    """Whether it runs the whole encoder and ships nothing, for comparison with the others."""


def devices(seconds: float) -> list[DemoDevice]:
    """A Raspberry Pi on Wi-Fi whose link collapses, an LTE gateway whose link recovers, a laptop whose link is slow in
    the middle, and a Pi that hears the same as the first one and ships nothing.
    """
    third = seconds / 3
    wifi = (Phase(third, 8.0), Phase(third, 0.15), Phase(third, 8.0))
    lte = (Phase(third, 0.15), Phase(third, 2.0), Phase(third, 1.0))
    return [
        DemoDevice("pi-wifi", "rpi4", wifi, 5.0, hears=0),
        DemoDevice("pi-lte", "rpi4", lte, 25.0, hears=1, swapped=True),
        DemoDevice("laptop", "m2", (Phase(third, 16.0), Phase(third, 0.3), Phase(third, 4.0)), 10.0, hears=2),
        DemoDevice("pi-alone", "rpi4", wifi, 5.0, hears=0, alone=True),
    ]
