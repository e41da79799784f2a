"""A manifest's description of what leaves a device gives away, as `ssc audit` measured it.

Rates are shares of recordings of people whom no attacker had heard before; with them comes their 95 % interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from msgspec import Meta

from runtime_edge.errors import BundleError
from runtime_edge.formats.encoder.parts import Part, Positive
from runtime_edge.formats.strict import Name

Share = Annotated[float, Meta(ge=0, le=1)]
Classes = Annotated[int, Meta(ge=2, le=1 << 16)]
Payload = tuple[str, int]
"""A cut and the width of its bottleneck that is shipped; 0 for the plain activation."""
Payloads = frozenset[Payload]


class MeasuredShare(Part, frozen=True, kw_only=True):
    """A measured share, and the 95 % interval that it lies in."""

    rate: Share
    low: Share
    high: Share


class Leak(Part, frozen=True, kw_only=True):
    """What one kind of payload, or an exit's embedding, gives away."""

    cut: Name
    encoding: Name
    """Of the plain activation; a latent is always int8, an exit's embedding float32."""
    width: Annotated[int, Meta(ge=0, le=4096)] = 0
    """Channels of the cut's bottleneck; 0 for the plain activation and for an exit."""
    words: MeasuredShare
    """Share of recordings whose word is recognised."""
    speakers: MeasuredShare | None = None
    """Share of recordings whose speaker is recognised; None if there were too few recordings of each."""
    image_error: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    """Squared error of the log-mel image that an attacker restores, as a share of that of the mean image."""
    intelligibility: Annotated[float, Meta(ge=-1, le=1)] | None = None
    """STOI of the sound that an attacker restores, median over recordings."""


class PrivacyInfo(Part, frozen=True, kw_only=True):
    """What an audit found; it holds for these weights only."""

    words: Classes
    """How many words an attacker chose from."""
    speakers: Annotated[int, Meta(ge=0, le=1 << 16)]
    """How many speakers an attacker chose from."""
    recordings: Positive
    """How many recordings the share of words is of."""
    seeds: Positive
    """How many times each attack was trained; rates are means over them."""
    shipped: Annotated[tuple[Leak, ...], Meta(max_length=1 << 16)]
    exits: Annotated[tuple[Leak, ...], Meta(max_length=4096)] = ()
    """Of exits' embeddings, by their cut."""
    members: MeasuredShare | None = None
    """AUROC of telling recordings that the weights may have been trained on from others by their embeddings."""

    def forbidden(
        self, most_words: float, cuts: Sequence[str], widths: Mapping[str, frozenset[int]], encoding: str
    ) -> Payloads:
        """The kinds of payload that may give away more than a share `most_words` of the words.

        Those whose interval reaches beyond it, and those that were never audited; `encoding` is that of plain
        activations. Raises BundleError if nothing is left.
        """
        every = {(cut, width) for cut in cuts for width in (0, *widths.get(cut, ()))}
        known = [leak for leak in self.shipped if leak.width or leak.cut == cuts[0] or leak.encoding == encoding]
        allowed = {(leak.cut, leak.width) for leak in known if leak.words.high <= most_words} & every
        if allowed:
            return frozenset(every - allowed)
        if not known:
            raise BundleError(f"max_word_recognition: no cut was audited in {encoding}; run `ssc audit` again")
        least = min(known, key=lambda leak: leak.words.high)
        where = f"{least.cut}/{least.width}" if least.width else least.cut
        raise BundleError(
            f"max_word_recognition {most_words:g}: nothing that this bundle ships keeps it; the least, {where}, may "
            f"give away {100 * least.words.high:.0f} % of words; allow that much, or ship nothing (--min-cut local)"
        )


def forbidden_kinds(
    found: PrivacyInfo | None,
    most_words: float | None,
    cuts: Sequence[str],
    widths: Mapping[str, frozenset[int]],
    encoding: str = "int8",
) -> Payloads:
    """What may not be shipped under `max_word_recognition`: nothing is forbidden if it is None.

    Raises BundleError if the bundle was never audited, or if nothing would be left.
    """
    if most_words is None:
        return frozenset()
    if found is None:
        raise BundleError(
            f"max_word_recognition {most_words:g}: this bundle was never audited; run `ssc audit` on it, or give a cut "
            "(--min-cut)"
        )
    return found.forbidden(most_words, cuts, widths, encoding)
