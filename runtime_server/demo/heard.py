"""Evaluates a device's results: one entry for each recording that was played, right or wrong."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime_server.demo.demo_recordings import HOP_S, Playlist

Row = Mapping[str, Any]
"""A result, as a device writes it (`runtime_edge/formats/results.py`)."""


@dataclass(frozen=True)
class Heard:
    """One recording, played once."""

    device: str
    play: int
    """Distinguishes the times that one recording is played."""
    recording: str
    truth: tuple[str, ...]
    """Those of its labels that the head knows; empty if the truth is unknown."""
    label: str
    """The label with the highest mean score over the windows."""
    score: float
    at: float
    """When its first window was captured, seconds since the epoch."""
    generation: int
    windows: int

    @property
    def right(self) -> bool | None:
        """Whether the label is right; None if the truth is unknown."""
        return self.label in self.truth if self.truth else None

    def __str__(self) -> str:
        verdict = {True: "right", False: f"wrong: {', '.join(self.truth)}", None: "not labelled"}[self.right]
        return f"{self.device:8} {self.label:15} {self.score:.2f}  {verdict}"


class ResultFile:
    """A file of results that a device is still writing, read without embeddings."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0
        self._rows: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """All results so far, in the order in which they were written."""
        if not self._path.exists():
            return self._rows
        with self._path.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            row = json.loads(line)
            del row["embedding"]
            self._rows.append(row)
        return self._rows


def last_answers(rows: Iterable[Row]) -> list[Row]:
    """One result for each window, in order; if a window was answered twice, the later answer."""
    last: dict[int, Row] = {}
    for row in rows:
        if row.get("revises", 0) >= last.get(row["window"], {}).get("revises", 0):
            last[row["window"]] = row
    return [last[window] for window in sorted(last)]


def heard(device: str, rows: Iterable[Row], playlist: Playlist, known: Iterable[str]) -> list[Heard]:
    """What a device heard of the recordings of which it labelled at least one window, in order.

    `known` are the labels of its head. If a window was answered twice, the later answer counts. A recording belongs to
    the generation that its first window ran on.
    """
    plays: dict[int, list[Row]] = defaultdict(list)
    for row in last_answers(row for row in rows if row.get("labels")):
        plays[row["window"] - round(row["offset_s"] / HOP_S)].append(row)
    return [_heard(device, play, own, playlist, frozenset(known)) for play, own in sorted(plays.items())]


def _heard(device: str, play: int, rows: Sequence[Row], playlist: Playlist, known: frozenset[str]) -> Heard:
    scores: dict[str, float] = defaultdict(float)
    for row in rows:
        for label, score in row["labels"].items():
            scores[label] += score / len(rows)
    label = max(scores, key=lambda name: scores[name])
    clip = playlist[Path(rows[0]["file"]).name]
    truth = tuple(name for name in clip.labels if name in known)
    first = rows[0]
    return Heard(
        device, play, clip.path.name, truth, label, scores[label], first["time"], first["generation"], len(rows)
    )


def accuracy(plays: Sequence[Heard]) -> dict[str, Any]:
    """For recordings with a known label: how many, how many are right, and the share (None if there are none)."""
    judged = [play.right for play in plays if play.right is not None]
    share = round(float(np.mean(judged)), 4) if judged else None
    return {"recordings": len(judged), "right": sum(judged), "accuracy": share}
