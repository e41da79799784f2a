"""Whether a release would lower the score of a head that devices use, on the clips that the head was fitted to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from runtime_edge.formats.records.head import Head
from runtime_server.labels.head_clips import HeadClipsFolder, head_name
from runtime_server.suffix.generations import CutModel, Generation

_LOG = logging.getLogger(__name__)
WITHOUT_CLIPS = (
    "it was pushed without its clips; push it again with `ssc server label --push` and this server's --state"
)
"""Why a head does not judge."""


@dataclass(frozen=True)
class HeadScore:
    """What a pushed head makes of its own clips."""

    head: str
    """Whom it is for: `rpi4`, or `rpi4 of pi-1`."""
    clips: int
    before: int
    """Clips that it labels rightly with the weights that devices run."""
    after: int
    """The same with those that would follow."""

    def __str__(self) -> str:
        return f"head {self.head} would fall from {self.before} to {self.after} of its {self.clips} clips"


@dataclass(frozen=True)
class HeadScores:
    """What is known of all pushed heads."""

    judged: tuple[HeadScore, ...] = ()
    without_clips: tuple[str, ...] = ()
    """Heads that were pushed without their clips: nobody knows what a release does to them."""

    @property
    def objection(self) -> str:
        """Each head that would get worse; empty when none would."""
        return ", ".join(str(score) for score in self.judged if score.after < score.before)


UNASKED = HeadScores()
"""Nobody has asked the heads."""


class HeadJudge:
    """Scores pushed heads by the clips that are kept of them."""

    def __init__(self, folder: HeadClipsFolder) -> None:
        self._folder = folder
        self._before: tuple[int, dict[str, int]] = 0, {}
        """Of one generation, the clips that each head labels rightly."""
        self._said: tuple[str, ...] = ()

    def judge(self, pushed: Mapping[str, Head], newest: Generation, candidate: CutModel) -> HeadScores:
        """Score each head with the weights that devices run and with those that would follow.

        Heads for another encoder, which devices refuse, are left out. Raises FormatError for clips that are damaged.
        """
        judged, without = [], []
        scored: dict[str, tuple[int, int, int] | None] = {}
        for name, head in sorted(pushed.items()):
            if not head.fits(newest.bundle.manifest.info):
                continue
            own = head_name(head.to_json())
            if own not in scored:
                scored[own] = self._scored(own, head, newest, candidate)
            if (score := scored[own]) is None:
                without.append(name)
            else:
                judged.append(HeadScore(name, *score))
        if without and tuple(without) != self._said:
            _LOG.warning("no release is judged by head %s: %s", ", ".join(without), WITHOUT_CLIPS)
        self._said = tuple(without)
        return HeadScores(tuple(judged), tuple(without))

    def _scored(self, name: str, head: Head, newest: Generation, candidate: CutModel) -> tuple[int, int, int] | None:
        """How many clips there are, and how many are right before and after; None without clips."""
        clips = self._folder.read(head)
        if clips is None:
            return None
        if self._before[0] != newest.number:
            self._before = newest.number, {}
        before = self._before[1]
        if name not in before:
            before[name] = clips.right(newest.model)
        return len(clips.clips), before[name], clips.right(candidate)
