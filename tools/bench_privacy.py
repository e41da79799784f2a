"""Publishes what an audited bundle gives away, and whether the attackers were strong.

    ssc audit bundle/ --recordings speech_commands/ --seeds 2 --members
    python -m tools.bench_privacy bundle/ encoder.head.json --recordings speech_commands/ [--no-publish]

The head that came with the encoder was trained directly for the words; attackers who have the waveform should recognise
as many. How far two seeds agree is Kendall's tau of the order of everything that leaves a device.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.encoder.privacy_info import Leak, PrivacyInfo
from runtime_edge.formats.records.head import Head, read_head
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.audit.audit_run import identity_of, results_path
from streamsplit_compile.audit.findings import orders_agree, read_findings
from streamsplit_compile.audit.spoken_recordings import SpokenRecordings, read_spoken
from tools.benchmarks import Section, publish, show


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
    for leak, name in [(leak, _name(leak)) for leak in found.shipped] + [(e, f"{e.cut}+exit") for e in found.exits]:
        people = "" if leak.speakers is None else f"; speakers {leak.speakers.rate:.3f} of {found.speakers}"
        image = "" if leak.image_error is None else f"; image error {leak.image_error:.3f}"
        clear = "" if leak.intelligibility is None else f", STOI {leak.intelligibility:.3f}"
        interval = f"{leak.words.low:.3f} to {leak.words.high:.3f}, chance {chance:.2f}"
        section.add(f"words.{name}", leak.words.rate, "", f"{leak.encoding}, {interval}{people}{image}{clear}")
    return section


def _name(leak: Leak) -> str:
    return f"{leak.cut}/{leak.width}" if leak.width else leak.cut


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
    section = Section("privacy", "What a cut gives away", "python -m tools.bench_privacy")
    filled(section, info.privacy, directly(bundle, read_head(given.head), spoken), orders_agree(results))
    (show if given.no_publish else publish)(section)


if __name__ == "__main__":
    main()
