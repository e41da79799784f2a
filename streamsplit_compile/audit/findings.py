"""The results of an audit's attacks, one JSON line each, and what they sum up to.

The file grows by a line as each attack ends, so an audit that was stopped goes on where it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from scipy.stats import kendalltau

from runtime_edge.base.files import write_atomic
from runtime_edge.errors import FormatError
from runtime_edge.formats.encoder.privacy_info import Leak, MeasuredShare, PrivacyInfo
from runtime_edge.formats.strict import Strict, decode
from streamsplit_compile.audit.outlets import Outlet
from streamsplit_compile.audit.recogniser import Flags, interval, target_recordings
from streamsplit_compile.audit.spoken_recordings import SpokenRecordings

_MAX_LINE = 1 << 20
AttackName = Literal["recognise", "invert", "members"]
Task = tuple[AttackName, Outlet, int]
"""An attack, what it attacks, and its seed."""


class Finding(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the file of results."""

    audit: str
    """Digest of the bundle without its audit, and of the recordings."""
    attack: AttackName
    what: Literal["shipped", "exit"]
    cut: str
    encoding: str
    width: int = 0
    seed: int
    words: str = ""
    """Of each judged recording 1 if its word was recognised, else 0."""
    words_by: str = ""
    speakers: str = ""
    speakers_by: str = ""
    image_error: float | None = None
    intelligibility: float | None = None
    auroc: tuple[float, float, float] | None = None

    @property
    def outlet(self) -> Outlet:
        """What was attacked."""
        return Outlet(self.what, self.cut, self.encoding, self.width)

    @property
    def task(self) -> Task:
        """Of which attack this is the result."""
        return self.attack, self.outlet, self.seed


def read_findings(results: Path, identity: str) -> list[Finding]:
    """The results so far; a last line that a crash cut short is left out. Raises FormatError for another audit's."""
    lines = results.read_bytes().splitlines(keepends=True) if results.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        write_atomic(results, b"".join(lines[:-1]))
        lines = lines[:-1]
    found = []
    for number, line in enumerate(lines, 1):
        finding = decode(line, Finding, f"{results}: line {number}", _MAX_LINE)
        if finding.audit != identity:
            raise FormatError(f"{results}: line {number}: of another bundle or of other recordings; choose another -o")
        found.append(finding)
    return found


def summed_up(found: Sequence[Finding], outlets: Sequence[Outlet], spoken: SpokenRecordings, seeds: int) -> PrivacyInfo:
    """What goes into the manifest."""
    leaks: dict[str, list[Leak]] = {"shipped": [], "exit": []}
    for outlet in outlets:
        own = [one for one in found if one.outlet == outlet]
        recognised = [one for one in own if one.attack == "recognise"]
        restored = next((one for one in own if one.attack == "invert"), None)
        speakers = [_flags(one.speakers) for one in recognised if one.speakers]
        leaks[outlet.what].append(
            Leak(
                cut=outlet.cut,
                encoding=outlet.encoding,
                width=outlet.width,
                words=_rate(*interval([_flags(one.words) for one in recognised])),
                speakers=_rate(*interval(speakers)) if speakers else None,
                image_error=None if restored is None else restored.image_error,
                intelligibility=None if restored is None else restored.intelligibility,
            )
        )
    leaks["shipped"] = [_with_narrower(leak, leaks["shipped"]) for leak in leaks["shipped"]]
    members = next((one.auroc for one in found if one.auroc is not None), None)
    return PrivacyInfo(
        words=len(spoken.vocabulary),
        speakers=len(np.unique(spoken.speakers[target_recordings(spoken)])),
        recordings=int(spoken.test.sum()),
        seeds=seeds,
        shipped=tuple(leaks["shipped"]),
        exits=tuple(leaks["exit"]),
        members=None if members is None else _rate(*members),
    )


def _with_narrower(leak: Leak, others: Sequence[Leak]) -> Leak:
    """A leak that is at least that of each narrower latent of its cut, which an attacker may take out of it."""
    narrower = [other for other in others if other.cut == leak.cut and 0 < other.width <= leak.width]
    if not narrower:
        return leak
    words = max((other.words for other in narrower), key=lambda found: found.rate)
    told = [other.speakers for other in narrower if other.speakers is not None]
    speakers = max(told, key=lambda found: found.rate, default=None)
    return msgspec.structs.replace(leak, words=words, speakers=speakers)


def orders_agree(found: Sequence[Finding]) -> float | None:
    """Kendall's tau of the order of outlets by recognised words, the mean over pairs of seeds; None for one seed."""
    by_seed: dict[int, dict[Outlet, float]] = {}
    for one in found:
        if one.attack == "recognise":
            by_seed.setdefault(one.seed, {})[one.outlet] = float(_flags(one.words).mean())
    pairs = itertools.combinations(by_seed.values(), 2)
    taus = [kendalltau([one[key] for key in one], [other[key] for key in one]).statistic for one, other in pairs]
    return float(np.mean(taus)) if taus else None


def as_text(flags: Flags) -> str:
    """Flags as the file has them: 1 or 0 for each recording."""
    return "".join("1" if flag else "0" for flag in flags)


def _flags(text: str) -> Flags:
    return np.array([flag == "1" for flag in text])


def _rate(rate: float, low: float, high: float) -> MeasuredShare:
    return MeasuredShare(rate=round(rate, 4), low=round(low, 4), high=round(high, 4))
