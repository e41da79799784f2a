"""Whether a release would lower the score of a head that devices use, and the heads that go with it.

A head is not judged as it is: it is fitted anew for each release. So weights are asked how well heads that are fitted
to some of its clips label the others, against the weights of the best generation so far.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from runtime_edge.formats.manifest import Manifest
from runtime_edge.formats.model_id import model_digest
from runtime_edge.formats.records.head import Head
from runtime_server.labels.head_clips import HeadClips, HeadClipsFolder, head_name
from runtime_server.suffix.generations import CutModel, Generation

_LOG = logging.getLogger(__name__)
MOST_LOST, MOST_LOST_AT_95 = 1.0, 2.0
"""Points, of clips labelled rightly, that a release may cost a head: on average, and at the lower end of the paired
95 % interval."""
_DRAWS = 2000
WITHOUT_CLIPS = (
    "it was pushed without its clips; push it again with `ssc server label --push` and this server's --state"
)
"""Why a head does not judge."""


@dataclass(frozen=True)
class HeadScore:
    """What heads that are fitted to some of a pushed head's clips make of the others."""

    head: str
    """Whom it is for: `rpi4`, or `rpi4 of pi-1`."""
    clips: int
    before: int
    """Clips that are labelled rightly with the weights of the best generation so far."""
    after: int
    """The same with those that would follow."""
    at_95: float = 0.0
    """The lower end of the paired 95 % interval of the change, points."""

    @property
    def worse(self) -> bool:
        """Whether no release may cost as much."""
        return 100 * (self.before - self.after) > MOST_LOST * self.clips or self.at_95 < -MOST_LOST_AT_95

    def __str__(self) -> str:
        return (
            f"head {self.head} would go from {self.before} to {self.after} of its {self.clips} clips "
            f"(95 %: down to {self.at_95:+.1f} points)"
        )


@dataclass(frozen=True)
class HeadScores:
    """What is known of all pushed heads."""

    judged: tuple[HeadScore, ...] = ()
    without_clips: tuple[str, ...] = ()
    """Heads that were pushed without their clips: nobody knows what a release does to them."""

    @property
    def worse(self) -> list[HeadScore]:
        """Those that speak against the release."""
        return [score for score in self.judged if score.worse]

    @property
    def objection(self) -> str:
        """Each head that would get worse; empty when none would."""
        return ", ".join(map(str, self.worse))


UNASKED = HeadScores()
"""Nobody has asked the heads."""


@dataclass
class _Asked:
    """A head's clips with the weights that would follow."""

    kept: HeadClips
    right: npt.NDArray[np.bool_]
    for_whom: list[str] = field(default_factory=list)


class HeadJudge:
    """Scores pushed heads by the clips that are kept of them, and fits them to the weights that are released."""

    def __init__(self, folder: HeadClipsFolder) -> None:
        self._folder = folder
        self._asked: dict[str, _Asked] = {}
        """Of the last judgement, by the file that the clips are kept in."""
        self._said: tuple[str, ...] = ()

    def judge(self, pushed: Mapping[str, Head], newest: Generation, candidate: CutModel) -> HeadScores:
        """Score each head with the weights of the best generation so far and with those that would follow.

        Heads for another encoder, which devices refuse, are left out. Raises FormatError for clips that are damaged.
        """
        judged, without = [], []
        self._asked = {}
        for name, head in sorted(pushed.items()):
            if not head.fits(newest.bundle.manifest.info):
                continue
            asked = self._ask(head, newest, candidate)
            if asked is None:
                without.append(name)
                continue
            asked.for_whom.append(name)
            best = np.frombuffer(asked.kept.best, np.uint8).astype(np.bool_)
            judged.append(compared(name, asked.right, best))
        if without and tuple(without) != self._said:
            _LOG.warning("no release is judged by head %s: %s", ", ".join(without), WITHOUT_CLIPS)
        self._said = tuple(without)
        return HeadScores(tuple(judged), tuple(without))

    def refit(self, candidate: CutModel, released: Manifest) -> dict[str, Head]:
        """The heads that were judged last, fitted to the weights that are released now, by whom they are for; those
        whose clips are too few stay as they are.

        Their clips are kept for the next release, with what the best generation made of them.
        """
        found, number = {}, released.info.generation
        for asked in self._asked.values():
            head = former = Head.from_json(asked.kept.head, "head")
            again = asked.kept.refitted(candidate)
            if again != former:
                head = msgspec.structs.replace(again, generations=(number, number), model=model_digest(released))
                found.update(dict.fromkeys(asked.for_whom, head))
            better = asked.right.sum() >= sum(asked.kept.best)
            best = asked.right.astype(np.uint8).tobytes() if better else asked.kept.best
            generation = number if better else asked.kept.best_generation
            self._folder.keep(
                msgspec.structs.replace(asked.kept, head=head.to_json(), best=best, best_generation=generation)
            )
        return found

    def forget(self, pushed: Mapping[str, Head]) -> None:
        """Remove the clips of heads that no device is given any more."""
        self._folder.remove_others(list(pushed.values()))

    def _ask(self, head: Head, newest: Generation, candidate: CutModel) -> _Asked | None:
        """None without clips. What the weights in use make of them is asked once, before the first release."""
        own = head_name(head.to_json())
        if own not in self._asked:
            kept = self._folder.read(head)
            if kept is None:
                return None
            if not kept.best:
                best = kept.right(newest.model).astype(np.uint8).tobytes()
                kept = msgspec.structs.replace(kept, best=best, best_generation=newest.number)
                self._folder.keep(kept)
            self._asked[own] = _Asked(kept, kept.right(candidate))
        return self._asked[own]


def compared(head: str, after: npt.NDArray[np.bool_], before: npt.NDArray[np.bool_]) -> HeadScore:
    """Which clips (clips,) are right with weights that would follow, and with the best so far.

    The 95 % interval is that of a paired bootstrap over clips.
    """
    change = after.astype(np.float64) - before
    drawn = np.random.default_rng(0).integers(0, len(change), (_DRAWS, len(change)))
    lower_end = float(100 * np.quantile(change[drawn].mean(axis=1), 0.025))
    return HeadScore(head, len(change), int(before.sum()), int(after.sum()), lower_end)
