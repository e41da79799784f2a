"""Judges whether a release would lower the scores of heads that devices use, and refits these heads for it.

A head is not judged as it is, because it is refitted for each release. Instead, weights are judged by how well heads
fitted to some of its clips label the others, compared with the weights of the best generation so far.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import numpy.typing as npt

from runtime_edge.errors import SscError
from runtime_edge.formats.model_id import model_digest
from runtime_edge.formats.records.head import Head
from runtime_server.labels.head_clips import HeadClipsFolder, head_name
from runtime_server.suffix.generations import CutModel, Generation

_LOG = logging.getLogger(__name__)
MOST_LOST, MOST_LOST_AT_95 = 1.0, 2.0
"""Points, of clips labelled correctly, that a release may cost a head: on average, and at the lower end of the paired
95 % interval."""
_DRAWS = 2000
WITHOUT_CLIPS = (
    "it was pushed without its clips; push it again with `ssc server label --push` and this server's --state"
)
"""Why a head does not judge."""


@dataclass(frozen=True)
class HeadScore:
    """How well heads fitted to some of a pushed head's clips label the others."""

    head: str
    """Its recipients: `rpi4`, or `rpi4 of pi-1`."""
    clips: int
    before: int
    """Clips labelled correctly with the weights of the best generation so far."""
    after: int
    """The same with the candidate's weights."""
    at_95: float = 0.0
    """The lower end of the paired 95 % interval of the change, points."""

    @property
    def worse(self) -> bool:
        """Whether the loss is more than a release may cost."""
        return 100 * (self.before - self.after) > MOST_LOST * self.clips or self.at_95 < -MOST_LOST_AT_95

    def __str__(self) -> str:
        return (
            f"head {self.head} would go from {self.before} to {self.after} of its {self.clips} clips "
            f"(95 %: down to {self.at_95:+.1f} points)"
        )


@dataclass(frozen=True)
class HeadScores:
    """The scores of all pushed heads, as far as they are known."""

    judged: tuple[HeadScore, ...] = ()
    without_clips: tuple[str, ...] = ()
    """Heads that were pushed without their clips, so that the effect of a release on them is unknown."""

    @property
    def worse(self) -> list[HeadScore]:
        """The heads that speak against the release."""
        return [score for score in self.judged if score.worse]

    @property
    def objection(self) -> str:
        """Each head that would get worse; empty if none would."""
        return ", ".join(map(str, self.worse))


UNASKED = HeadScores()
"""The heads were not judged."""


class HeadJudge:
    """Scores pushed heads by the clips kept for them, and refits them to released weights."""

    def __init__(self, folder: HeadClipsFolder) -> None:
        self._folder = folder
        self._said: tuple[str, ...] = ()

    def judge(self, pushed: Mapping[str, Head], newest: Generation, candidate: CutModel) -> HeadScores:
        """Score each head with the weights of the best generation so far and with the candidate's.

        Heads for another encoder, which devices refuse, are left out. Raises FormatError for damaged clips.
        """
        judged, without = [], []
        asked: dict[str, HeadScore | None] = {}
        for name, head in sorted(pushed.items()):
            if not head.fits(newest.bundle.manifest.info):
                continue
            own = head_name(head.to_json())
            if own not in asked:
                asked[own] = self._ask(head, newest, candidate)
            if (score := asked[own]) is None:
                without.append(name)
            else:
                judged.append(replace(score, head=name))
        if without and tuple(without) != self._said:
            _LOG.warning("no release is judged by head %s: %s", ", ".join(without), WITHOUT_CLIPS)
        self._said = tuple(without)
        return HeadScores(tuple(judged), tuple(without))

    def refit(self, pushed: Mapping[str, Head], released: Generation) -> dict[str, Head]:
        """Replacements for the pushed heads, by recipient, fitted to a generation that is about to be released.

        Left out are heads of that generation, and those without clips, with too few or with damaged ones; the latter
        are logged. The clips are kept for the next release, with the results of the best generation.
        """
        self.forget(pushed)
        fitted: dict[str, Head | None] = {}
        for head in pushed.values():
            own = head_name(head.to_json())
            if own in fitted or head.generations[1] >= released.number or not head.fits(released.bundle.manifest.info):
                continue
            try:
                fitted[own] = self._fitted(head, released)
            except (SscError, OSError) as exc:
                _LOG.error("a head is not fitted to generation %d: %s", released.number, exc)
        found = {name: fitted.get(head_name(head.to_json())) for name, head in pushed.items()}
        return {name: head for name, head in found.items() if head is not None}

    def _fitted(self, former: Head, released: Generation) -> Head | None:
        """The refitted head; None if the head stays as it is."""
        kept = self._folder.read(former)
        again = None if kept is None else kept.refitted(released.model)
        if kept is None or again is None or again == former:
            return None
        number, digest = released.number, model_digest(released.bundle.manifest)
        head = msgspec.structs.replace(again, generations=(number, number), model=digest)
        right = kept.right(released.model)
        if right.sum() >= sum(kept.best):
            kept = msgspec.structs.replace(kept, best=right.astype(np.uint8).tobytes(), best_generation=number)
        self._folder.keep(msgspec.structs.replace(kept, head=head.to_json()), bounded=False)
        return head

    def forget(self, pushed: Mapping[str, Head]) -> None:
        """Remove the clips of heads that no device has any more."""
        self._folder.remove_others(list(pushed.values()))

    def _ask(self, head: Head, newest: Generation, candidate: CutModel) -> HeadScore | None:
        """A head's score; None without clips. The weights in use are scored once, before the first release."""
        kept = self._folder.read(head)
        if kept is None:
            return None
        if not kept.best:
            best = kept.right(newest.model).astype(np.uint8).tobytes()
            kept = msgspec.structs.replace(kept, best=best, best_generation=newest.number)
            self._folder.keep(kept, bounded=False)
        return compared("", kept.right(candidate), np.frombuffer(kept.best, np.uint8).astype(np.bool_))


def compared(head: str, after: npt.NDArray[np.bool_], before: npt.NDArray[np.bool_]) -> HeadScore:
    """The score from which clips (clips,) are right with the candidate's weights, and with the best weights so far.

    The 95 % interval is that of a paired bootstrap over clips.
    """
    change = after.astype(np.float64) - before
    drawn = np.random.default_rng(0).integers(0, len(change), (_DRAWS, len(change)))
    lower_end = float(100 * np.quantile(change[drawn].mean(axis=1), 0.025))
    return HeadScore(head, len(change), int(before.sum()), int(after.sum()), lower_end)
