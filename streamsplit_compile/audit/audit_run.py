"""Runs an audit: every attack on every outlet of a bundle, each result written down as it is found.

    found = run_audit(bundle, spoken, plan, Path("bundle.audit.jsonl"), progress)
    bundle = write_audit(bundle, found, key)

Results belong in the manifest, so that its signature covers them: a device with `max_word_recognition` takes them for
its privacy floor, and no server can make them look better. `write_audit` therefore changes the manifest and signs it
again; blocks, tables and their signatures stay as they are. New weights have other results: a recompiled bundle has
none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtime_edge.base.files import write_atomic
from runtime_edge.errors import CheckFailed, UsageError
from runtime_edge.formats import manifest as manifests
from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import SIGNATURE, Bundle, open_bundle
from runtime_edge.formats.encoder.privacy_info import PrivacyInfo
from streamsplit_compile.audit.findings import Finding, Task, as_text, read_findings, summed_up
from streamsplit_compile.audit.membership import membership_auroc
from streamsplit_compile.audit.outlets import Collector, Outlet, outlets_of
from streamsplit_compile.audit.recogniser import attack_on
from streamsplit_compile.audit.restoration import restored
from streamsplit_compile.audit.spoken_recordings import SpokenRecordings
from streamsplit_compile.bundle.bundle_page import render_report
from streamsplit_compile.bundle.bundle_writer import write_manifest
from streamsplit_compile.bundle.compiler import report_path
from streamsplit_compile.bundle.cut_assets.fitting import with_info

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class AuditPlan:
    """What to attack, and for how long."""

    encodings: Sequence[str] = ("int8",)
    seeds: int = 1
    hours: float = 4.0
    members: bool = False
    """Whether the recordings that are not judged are those that the weights were trained on."""
    samples: Path | None = None
    """Directory for restored sound to listen to."""
    clock: Callable[[], float] = time.monotonic
    """Seconds that never jump."""


def run_audit(
    bundle: Bundle, spoken: SpokenRecordings, plan: AuditPlan, results: Path, progress: Progress
) -> PrivacyInfo:
    """Make every attack whose result is not yet in the file `results`, and sum all of them up.

    Raises CheckFailed when the time is up, FormatError if the file is of another audit, MissingExtra without pystoi.
    """
    outlets, identity = outlets_of(bundle, plan.encodings), identity_of(bundle, spoken)
    tasks = _tasks(bundle, outlets, plan)
    found = {finding.task: finding for finding in read_findings(results, identity)}
    collector, until = Collector(bundle, spoken.windows), plan.clock() + 3600 * plan.hours
    for place, task in enumerate(tasks):
        attack, outlet, seed = task
        if task in found:
            continue
        if plan.clock() >= until:
            raise CheckFailed(
                f"{results}: {plan.hours:g} h are over with {place} of {len(tasks)} attacks made; give the same "
                "command again to go on"
            )
        progress(f"{attack} {outlet.name} ({outlet.encoding}, seed {seed})", place, len(tasks))
        finding = _made(task, identity, collector, bundle, spoken, plan.samples)
        with results.open("ab") as file:
            file.write(msgspec.json.encode(finding) + b"\n")
        found[task] = finding
    return summed_up([found[task] for task in tasks], outlets, spoken, plan.seeds)


def identity_of(bundle: Bundle, spoken: SpokenRecordings) -> str:
    """Digest of a bundle without its audit, and of the recordings: what an audit's results are of."""
    plain = manifests.encode(with_info(bundle.manifest, privacy=None))
    heard = (spoken.windows, spoken.words, spoken.speakers, spoken.test)
    return manifests.digest(b"".join((plain, *(part.tobytes() for part in heard))))


def results_path(bundle: Path) -> Path:
    """The path of an audit's results: `bundle.audit.jsonl` for `bundle/`."""
    return bundle.resolve().with_name(f"{bundle.resolve().name}.audit.jsonl")


def check_key(bundle: Bundle, key: minisign.SecretKey | None) -> None:
    """Raise UsageError unless a signed bundle can be signed again."""
    if key is None and (bundle.path / SIGNATURE).exists():
        raise UsageError(f"{bundle.path}: is signed, and results become part of what is signed; give --key")


def write_audit(bundle: Bundle, found: PrivacyInfo, key: minisign.SecretKey | None) -> Bundle:
    """The bundle with the results in its manifest and on its page, signed if there is a key. Raises UsageError."""
    check_key(bundle, key)
    write_manifest(bundle.path, with_info(bundle.manifest, privacy=found), key)
    audited = open_bundle(bundle.path, None if key is None else key.public)
    write_atomic(report_path(bundle.path), render_report(audited))
    return audited


def _tasks(bundle: Bundle, outlets: Sequence[Outlet], plan: AuditPlan) -> list[Task]:
    """All attacks, those on one cut together. Images are restored of the widest that is shipped at each cut."""
    widest: dict[str, Outlet] = {}
    for outlet in outlets:
        if outlet.what == "shipped" and (outlet.cut not in widest or outlet.width > widest[outlet.cut].width):
            widest[outlet.cut] = outlet
    info, tasks = bundle.manifest.info, list[Task]()
    for outlet in outlets:
        tasks += [("recognise", outlet, seed) for seed in range(plan.seeds)]
        if outlet == widest[outlet.cut] and outlet.cut != info.cuts[0].name and info.front_end.log_mel is not None:
            tasks.append(("invert", outlet, 0))
    if plan.members:
        last = next(one for one in outlets if one.cut == info.cuts[-1].name)
        tasks.append(("members", last, 0))
    return tasks


def _made(
    task: Task, identity: str, collector: Collector, bundle: Bundle, spoken: SpokenRecordings, samples: Path | None
) -> Finding:
    attack, outlet, seed = task
    finding = Finding(
        audit=identity,
        attack=attack,
        what=outlet.what,
        cut=outlet.cut,
        encoding=outlet.encoding,
        width=outlet.width,
        seed=seed,
    )
    arrived = collector.arrived(outlet)
    if attack == "members":
        return msgspec.structs.replace(finding, auroc=membership_auroc(arrived.embeddings, spoken, seed))
    if attack == "invert":
        front_end, name = bundle.manifest.info.front_end, outlet.name.replace("/", "-")
        error, heard = restored(arrived.values, collector.images(), spoken, front_end, samples, name)
        return msgspec.structs.replace(finding, image_error=error, intelligibility=heard)
    made = attack_on(arrived, spoken, seed)
    return msgspec.structs.replace(
        finding,
        words=as_text(made.words),
        words_by=made.words_by,
        speakers="" if made.speakers is None else as_text(made.speakers),
        speakers_by=made.speakers_by,
    )
