"""Advice as tables in a terminal: what each policy costs for a window and for a month."""

from __future__ import annotations

from collections.abc import Iterable

import click

from runtime_edge.base.text import size
from streamsplit_compile.advice.advice import Advice, Estimate
from streamsplit_compile.cli.printing import print_table

BATTERY_WH = 37.0
"""10 Ah at 3.7 V."""


def print_advice(
    given: Iterable[Advice],
    sources: Iterable[str],
    active: float = 1.0,
    battery_wh: float = BATTERY_WH,
    per_gb: float | None = None,
) -> None:
    """Print a table for each advice, where the figures come from, and the recommendations."""
    given = list(given)
    for advice in given:
        _print(advice, active, battery_wh, per_gb)
    for line in sources:
        click.echo(f"  {line}")
    for advice in given:
        click.echo(f"\n{advice.sentence(active)}")


def _print(advice: Advice, active: float, battery_wh: float, per_gb: float | None) -> None:
    asked = any(one.head is not None for one in advice.estimates)
    print_table(
        f"a window on {advice.target} over {advice.link}",
        ["policy", "answer ms", "up", "down", "mJ", "agreement", *(["head"] if asked else []), "memory"],
        [
            [one.policy, _answers(one), size(round(one.up_bytes)), size(round(one.down_bytes)),
             f"{one.above_idle_mj:.0f}", f"{one.agreement:.3f}",
             *([_rights(one)] if asked else []), f"{one.memory_mb:.1f} MB"]
            for one in advice.estimates
        ],
    )  # fmt: skip
    cost = [] if per_gb is None else ["cost"]
    print_table(
        f"a month of it, {active:.0%} of the time, with idle power of {advice.estimates[0].idle_mj:.0f} mJ a window",
        ["policy", "GB", "Wh", f"hours on {battery_wh:g} Wh", *cost],
        [
            [one.policy, f"{one.gb_a_month(active):.3g}", f"{one.wh_a_month(active):.0f}",
             f"{one.battery_hours(battery_wh, active):.1f}",
             *([] if per_gb is None else [f"{per_gb * one.gb_a_month(active):.2f}"])]
            for one in advice.estimates
        ],
    )  # fmt: skip
    for line in advice.left_out:
        click.echo(f"  left out: {line}")


def _answers(one: Estimate) -> str:
    first, final = f"{one.first_ms:.0f}", f"{one.final_ms:.0f}"
    return first if first == final else f"{first}, {final}"


def _rights(one: Estimate) -> str:
    """The share that a head gets right from the first and from the last answers, as text."""
    if one.head is None:
        return ""
    last = f"{one.head:.1%}"
    return last if one.first_ms == one.final_ms or one.head_first is None else f"{one.head_first:.1%}, {last}"
