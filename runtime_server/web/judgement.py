"""The outcomes of releases and of attempts at a release, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime_edge.base.text import printable

_OF_STATUS = {
    "trial": "is on trial with {share} of the devices",
    "stable": "runs everywhere",
    "superseded": "was replaced by a later one",
    "rolled back": "was rolled back",
}


def attempt_in_words(outcome: Mapping[str, Any]) -> str:
    """One attempt to release the trained weights as a generation (`ReleaseOutcome` as a dictionary)."""
    number, steps = outcome["generation"], outcome["steps"]
    compared = _compared(outcome.get("before"), outcome.get("after"))
    if outcome["released"]:
        return f"After training step {steps}, generation {number} was released{compared and f': {compared}'}."
    why = printable(str(outcome["reason"]))
    return f"After training step {steps}, generation {number} was not released: {why}{compared and f'; {compared}'}."


def release_in_words(entry: Mapping[str, Any]) -> str:
    """A generation that was offered to devices (an entry of the rollout's listing)."""
    status = _OF_STATUS.get(entry["status"], entry["status"]).format(share=f"{entry['share']:.0%}")
    words = [f"Generation {entry['generation']} {status}"]
    devices, proven, waiting = entry["devices"], entry["devices_proven"], entry["devices_waiting"]
    words.append(f"{devices} {'device runs' if devices == 1 else 'devices run'} it, {proven} proven")
    if waiting:
        words.append(f"{waiting} {'waits' if waiting == 1 else 'wait'} for a budget")
    if None not in (before := entry.get("held_out_before"), after := entry.get("held_out_after")):
        words.append(f"loss on held-out windows {before:.4f} → {after:.4f}")
    if entry.get("pinned"):
        words.append("it is pinned")
    if entry.get("reason"):
        words.append(printable(str(entry["reason"])))
    return "; ".join(words) + "."


def score_in_words(outcome: Mapping[str, Any], score: Mapping[str, Any]) -> str:
    """How an attempt at a release would change a head's score (`HeadScore` as a dictionary)."""
    clips, before, after = score["clips"], score["before"], score["after"]
    came = "released" if outcome["released"] else "not released"
    return (
        f"Generation {outcome['generation']} ({came}): head {printable(str(score['head']))} labels {after} of {clips} "
        f"held-out clips correctly ({after / max(1, clips):.1%}), {before} with the best generation before."
    )


def _compared(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    if not before or not after:
        return ""
    words = [f"loss on held-out windows {before['loss']:.4f} → {after['loss']:.4f}"]
    if None not in (before.get("probe_accuracy"), after.get("probe_accuracy")):
        words.append(f"linear probe {before['probe_accuracy']:.1%} → {after['probe_accuracy']:.1%}")
    return ", ".join(words)
