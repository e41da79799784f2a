"""Publishes what an audited bundle gives away, and whether the attackers were strong.

    ssc audit bundle/ --recordings speech_commands/ --seeds 2 --members
    python -m tools.bench_privacy bundle/ encoder.head.json --recordings speech_commands/ [--no-publish]

The head that came with the encoder was trained directly for the words; attackers who have the waveform should recognise
as many. How far two seeds agree is Kendall's tau of the order of everything that leaves a device.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.encoder.privacy_info import Leak, PrivacyInfo
from runtime_edge.formats.records.head import Head, read_head
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.audit.audit_run import identity_of, results_path
from streamsplit_compile.audit.findings import orders_agree, read_findings
from streamsplit_compile.audit.spoken_recordings import SpokenRecordings, read_spoken
from tools.benchmarks import DOCS, Section, publish, show

_COLOURS = {"words": "#0b7189", "speakers": "#e07a5f"}


def directly(bundle: Bundle, head: Head, spoken: SpokenRecordings) -> float:
    """Share of the judged recordings whose word the head says, of the words that the recordings have."""
    prefix, words = Prefix(bundle), list(head.labels)
    if missing := [word for word in spoken.vocabulary if word not in words]:
        raise UsageError(f"the head has no label {missing[0]!r}")
    places = [words.index(word) for word in spoken.vocabulary]
    scores = np.stack([head.scores(prefix.embed(window))[places] for window in spoken.windows[spoken.test]])
    return float((scores.argmax(1) == spoken.words[spoken.test]).mean())


def filled(section: Section, found: PrivacyInfo, direct: float, tau: float | None) -> Section:
    """The section with an audit's numbers, the share that is recognised `directly`, and the agreement of seeds."""
    chance, (raw, *_) = 1 / found.words, found.shipped
    gap = 100 * (direct - raw.words.rate)
    section.add("attack_strength_gap", gap, "at most 3", f"points below a head trained for the words ({direct:.4f})")
    if tau is not None:
        section.add("order_tau", tau, "at least 0.8", f"of the order of leaks between {found.seeds} seeds")
    if found.members is not None:
        what = f"AUROC of what the weights were trained on, {found.members.low:.3f} to {found.members.high:.3f}"
        section.add("members", found.members.rate, "", what)
    for name, leak in _named(found):
        people = "" if leak.speakers is None else f"; speakers {leak.speakers.rate:.3f} of {found.speakers}"
        image = "" if leak.image_error is None else f"; image error {leak.image_error:.3f}"
        clear = "" if leak.intelligibility is None else f", STOI {leak.intelligibility:.3f}"
        interval = f"{leak.words.low:.3f} to {leak.words.high:.3f}, chance {chance:.2f}"
        section.add(f"words.{name}", leak.words.rate, "", f"{leak.encoding}, {interval}{people}{image}{clear}")
    return section


def draw(found: PrivacyInfo, out: Path) -> None:
    """Draw the shares of words and of speakers that are recognised in each payload, with intervals and chance."""
    named = _named(found)
    figure = Figure(figsize=(9, 0.34 * len(named) + 1.2), layout="constrained")
    axes = figure.subplots()
    chances = {"words": 1 / found.words, "speakers": 1 / max(found.speakers, 1)}
    for place, (what, colour) in enumerate(_COLOURS.items()):
        shares = [(row, share) for row, (_, leak) in enumerate(named) if (share := getattr(leak, what)) is not None]
        rates = 100 * np.array([share.rate for _, share in shares])
        reach = 100 * np.array([(share.rate - share.low, share.high - share.rate) for _, share in shares]).T
        rows = np.array([row for row, _ in shares]) + 0.4 * place - 0.2
        axes.barh(rows, rates, 0.36, xerr=reach, color=colour, label=what, error_kw={"lw": 0.8})
        axes.axvline(100 * chances[what], color=colour, lw=0.8, ls=":", label=f"chance, {what}")
    axes.set_yticks(range(len(named)), [name for name, _ in named])
    axes.invert_yaxis()
    axes.set(xlabel="recognised by an attacker, %", xlim=(0, 100))
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    with mpl.rc_context({"svg.hashsalt": "streamsplit"}):
        figure.savefig(out, metadata={"Date": None})


def _named(found: PrivacyInfo) -> list[tuple[str, Leak]]:
    """Everything that leaves a device, with its name as a splitter's action."""
    shipped = [(f"{leak.cut}/{leak.width}" if leak.width else leak.cut, leak) for leak in found.shipped]
    return shipped + [(f"{leak.cut}+exit", leak) for leak in found.exits]


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("head", type=Path)
    parser.add_argument("--recordings", type=Path, required=True)
    parser.add_argument("--results", type=Path, help="the audit's results, if they are not beside the bundle")
    parser.add_argument("--no-publish", action="store_true", help="print the numbers and leave docs/ alone")
    given = parser.parse_args()
    bundle = open_bundle(given.bundle)
    info = bundle.manifest.info
    if info.privacy is None:
        raise UsageError(f"{given.bundle}: was never audited; run `ssc audit` on it")
    spoken = read_spoken(given.recordings, info.front_end.sample_rate, info.front_end.window_samples)
    results = read_findings(given.results or results_path(given.bundle), identity_of(bundle, spoken))
    section = Section("privacy", "What a cut gives away", "python -m tools.bench_privacy", "audit")
    filled(section, info.privacy, directly(bundle, read_head(given.head), spoken), orders_agree(results))
    if given.no_publish:
        show(section)
        return
    publish(section)
    draw(info.privacy, DOCS / "privacy.svg")


if __name__ == "__main__":
    main()
