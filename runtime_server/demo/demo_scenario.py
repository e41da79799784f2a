"""The demo's scenario: devices on links that change, and one that ships nothing."""

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
    """Devices of one number hear the same recordings in the same order."""
    swapped: bool = False
    """Whether it gets another splitter table half-way."""
    alone: bool = False
    """Whether it runs the whole encoder and ships nothing: what the others are compared with."""


def devices(seconds: float) -> list[DemoDevice]:
    """A Wi-Fi Pi whose link collapses, an LTE gateway that recovers, a laptop with a slow middle, and a Pi that hears
    what the first one hears and ships nothing.
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
