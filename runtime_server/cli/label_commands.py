"""`ssc server label`: train a head from labelled recordings or events, and ship it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from runtime_edge.click_options import ManyOptions
from runtime_edge.errors import LinkError, UsageError
from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.credentials import Address
from runtime_edge.formats.model_id import model_digest
from runtime_edge.formats.records.head import Head, read_head, write_head
from runtime_server.broker.hub import Hub
from runtime_server.broker.pushed_heads import pushed_heads
from runtime_server.cli.server_access import check_signed, signing_key
from runtime_server.cli.server_options import DEFAULT_STATE, ask, server_option
from runtime_server.labels.corrections import Corrected, Corrections, corrections_path, with_corrections
from runtime_server.labels.head_clips import HeadClips, HeadClipsFolder, Heard
from runtime_server.labels.head_training import BACKGROUND, Examples, fit_head
from runtime_server.labels.labelled import is_events, of_clips, of_events, read_clips, read_events
from runtime_server.state.server_state import bundle_paths, head_clips_path
from streamsplit_compile.cli.options import PathParam, json_option, key_option, renamed, together
from streamsplit_compile.cli.printing import Steps, print_json, print_table, print_warning

_LOOK_S = 2.0

_fit_options = together(
    click.option(
        "--bundle", "given", type=PathParam(), help="Use this bundle instead of the server's newest generation."
    ),
    click.option(
        "-o", "--out", type=PathParam(), default=Path("head.json"), show_default=True, help="Head file to write."
    ),
    click.option(
        "--gate-db", default=-60.0, show_default=True, help="Leave out windows of recordings below this level, dB."
    ),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the held-out folds."),
    click.option(
        "--corrections/--no-corrections",
        default=True,
        show_default=True,
        help="Also use the corrections made on the page of the server of --state.",
    ),
)
"""Options: what a head is fitted to, and where it is written."""

_push_options = together(
    click.option(
        "--push", is_flag=True, help="Give the head to running devices; it takes effect at their next window."
    ),
    click.option("--target", help="Push to devices of this target only [default: all of the bundle's]."),
    click.option("--device", help="Push to this device only; needs --target when the bundle has several."),
    click.option("--follow", is_flag=True, help="Keep running, and fit and push again at every release."),
    renamed(
        "--no-judging",
        "--no-probe",
        "probe",
        flag_value=False,
        default=True,
        help="With --push: do not judge releases by this head.",
    ),
    click.option(
        "--head",
        "ready",
        type=PathParam(),
        help="Push this head as it is; use the recordings only to judge releases by it.",
    ),
)
"""Options: who gets a head, how often, and whether it judges releases."""


_COMMON = ("given", "out", "push", "target", "device", "follow", "ready", "state", "as_json")


@click.command(cls=ManyOptions, common=_COMMON)
@click.argument("source", metavar="[FOLDER|CSV]", required=False, type=PathParam())
@_fit_options
@_push_options
@server_option
@key_option
@json_option
def label(
    source: Path | None,
    state: Path | None,
    given: Path | None,
    out: Path,
    push: bool,
    target: str | None,
    device: str | None,
    follow: bool,
    probe: bool,
    ready: Path | None,
    gate_db: float,
    seed: int,
    corrections: bool,
    broker: Address,
    key: Path | None,
    as_json: bool,
) -> None:
    """Train a head, which gives each window labels with scores.

    The source is a folder with one subfolder of recordings for each label, a CSV `file,label[,fold]`, or a CSV
    `device,time,label[,seconds]` that says when a device heard what. Corrections made on the server's page are added.
    The head is signed with --key or the server's key. With --push some windows of the recordings are kept in --state.
    Each release then brings a head fitted to it, and a release with which heads would label fewer of the recordings
    correctly is refused. With --head and --push nothing is fitted: the given head is pushed as it is.

    Example: ssc server label heard.csv --state server/ --push
    """
    _check_together(given, ready, push, follow)
    state = state or DEFAULT_STATE
    secret = signing_key(key, state)
    if ready is not None:
        _push_ready(ready, source, probe, secret, broker, state, (target, device), gate_db, as_json)
        return
    folder, labelled = None if given else HeadClipsFolder(head_clips_path(state)), _required(source)
    said = Corrections(corrections_path(state)) if corrections and not given else None

    def work(bundles: dict[int, Bundle]) -> None:
        newest = bundles[max(bundles)]
        targets = _targets(newest, target, device) if push or follow else []
        if targets:
            check_signed(broker, secret)  # first, because embedding the recordings takes a while
        corrected = _examples(labelled, bundles, broker, gate_db, said, quiet=as_json)
        head = _fitted(corrected.examples, bundles, seed)
        write_head(out, head, secret)
        if targets:
            kept = probe and _keep_clips(head, labelled, newest, gate_db, folder, corrected=corrected.audio)
            _push(head, secret, broker, targets, device, folder, kept)
        _report(head, corrected, out, targets, as_json)

    if follow:
        _follow(state, work, said)
    work(_bundles(state, given))


def _check_together(given: Path | None, ready: Path | None, push: bool, follow: bool) -> None:
    if follow and given is not None:
        raise UsageError("--follow looks for new generations in --state; leave out --bundle")
    if ready is not None and (follow or given is not None or not push):
        raise UsageError("--head: a finished head can only be pushed: give --push, and leave out --follow and --bundle")


def _follow(state: Path, work: Callable[[dict[int, Bundle]], None], said: Corrections | None) -> NoReturn:
    """Work on the present generations, and again whenever there is a newer generation or another correction.

    Several corrections, one after the other, count once the last has been made.
    """
    done: tuple[int, object] | None = None
    before: object = None
    while True:
        bundles = _bundles(state, None)
        there = max(bundles), None if said is None else said.fingerprint
        is_settled, before = done is None or there[0] != done[0] or there == before, there
        if there != done and is_settled:
            try:
                work(bundles)
                done = there
            except LinkError as exc:
                click.echo(f"waiting for the broker: {exc}")
        time.sleep(_LOOK_S)


def _bundles(state: Path, given: Path | None) -> dict[int, Bundle]:
    """The server's generations by number. Raises UsageError when there is none."""
    if given is not None:
        bundle = open_bundle(given)
        return {bundle.manifest.info.generation: bundle}
    paths = bundle_paths(state)
    if not paths:
        raise UsageError(f"{state}: no server has run here; give its --state directory, or --bundle")
    return {number: open_bundle(path) for number, path in paths.items()}


def _targets(bundle: Bundle, target: str | None, device: str | None) -> list[str]:
    known = list(bundle.manifest.info.targets)
    if target is not None and target not in known:
        raise UsageError(f"--target {target}: this bundle was compiled for {', '.join(known)}")
    if device is not None and target is None and len(known) > 1:
        raise UsageError(f"--device {device}: say with --target which of {', '.join(known)} it is")
    return known if target is None else [target]


def _examples(
    source: Path, bundles: dict[int, Bundle], broker: Address, gate_db: float, said: Corrections | None, quiet: bool
) -> Corrected:
    with Steps(quiet) as steps:
        if is_events(source):
            events = read_events(source)
            examples = ask(broker, "label", lambda hub: of_events(events, hub, bundles, steps))
        else:
            examples = of_clips(read_clips(source), bundles[max(bundles)], gate_db, steps)
    return Corrected(examples) if said is None else with_corrections(examples, said.read(), bundles)


def _fitted(examples: Examples, bundles: dict[int, Bundle], seed: int) -> Head:
    model = model_digest(bundles[examples.generations[1]].manifest)
    encoder = bundles[max(bundles)].manifest.info.encoder.id
    return fit_head(examples, encoder, "ssc server label", seed, model)


def _required(source: Path | None) -> Path:
    if source is None:
        raise UsageError("give recordings or events to fit a head to, or a finished head with --head")
    return source


def _push_ready(
    path: Path,
    source: Path | None,
    probe: bool,
    key: minisign.SecretKey | None,
    broker: Address,
    state: Path,
    whom: tuple[str | None, str | None],
    gate_db: float,
    as_json: bool,
) -> None:
    """Push an existing head to a target and device; with `probe`, recordings of its labels judge releases by it."""
    check_signed(broker, key)
    bundles, folder = _bundles(state, None), HeadClipsFolder(head_clips_path(state))
    newest, head = bundles[max(bundles)], read_head(path)
    head.check_fits(newest.manifest.info, str(path))
    targets = _targets(newest, *whom)
    kept = probe and _keep_clips(head, source, newest, gate_db, folder, fixed=True)
    _push(head, key, broker, targets, whom[1], folder, kept)
    if as_json:
        print_json({"head": str(path), "labels": head.labels, "pushed_to": targets})
    else:
        click.echo(f"{path}: {len(head.labels)} labels, pushed to {', '.join(targets)}")


def _keep_clips(
    head: Head,
    source: Path | None,
    bundle: Bundle,
    gate_db: float,
    folder: HeadClipsFolder | None,
    fixed: bool = False,
    corrected: Sequence[Heard] = (),
) -> bool:
    """Keep the clips that judge releases and that a head that is not `fixed` is refitted to; warn if that fails.

    Returns whether they are kept.
    """
    if folder is not None and source is not None and not is_events(source):
        clips = read_clips(source)
        if fixed:
            known = [clip for clip in clips if set(clip.labels) <= set(head.labels)]
            if not known:
                raise UsageError(f"{source}: no recording has a label of the head: {', '.join(head.labels)}")
            if len(known) < len(clips):
                print_warning(f"{source}: {len(clips) - len(known)} recordings have labels that the head does not know")
            clips = known
        kept = HeadClips.of(head, clips, bundle.manifest.info.front_end, gate_db, fixed, corrected)
        if not fixed and (unheard := set(head.labels) - {label for own in kept.clips for label in own}):
            print_warning(
                f"this head stays as it is at releases: there is no audio of {', '.join(sorted(unheard))}, only "
                "activations that were corrected; record some"
            )
        folder.keep(kept)
        return True
    fix = "label recordings" if folder else "leave out --bundle, on the server's machine and with its --state"
    print_warning(f"releases will not be judged by this head, because no clips are kept of it; {fix}")
    return False


def _push(
    head: Head,
    key: minisign.SecretKey | None,
    broker: Address,
    targets: list[str],
    device: str | None,
    folder: HeadClipsFolder | None,
    kept: bool,
) -> None:
    """Push a head to the devices of the targets, and remove the clips of heads that no device has any more.

    Its own clips are removed too if they are not `kept`: the same recordings may have given the same head before.
    """

    async def push(hub: Hub) -> None:
        for target in targets:
            await hub.put_head(head, key, target, device)
        if folder is not None:
            used = (await pushed_heads(hub, None if key is None else key.public)).values()
            folder.remove_others([one for one in used if kept or one != head])

    ask(broker, "label", push)


def _report(head: Head, corrected: Corrected, out: Path, pushed_to: list[str], as_json: bool) -> None:
    examples, corrections = corrected.examples, corrected.used
    counts = examples.truth.sum(axis=0).tolist()
    validation = head.validation
    if as_json:
        found: dict[str, Any] = {
            "head": str(out),
            "encoder": head.encoder,
            "generations": head.generations,
            "model": head.model,
            "windows": dict(zip(head.labels, counts, strict=True)),
            "corrections": corrections,
            "thresholds": dict(zip(head.labels, head.thresholds, strict=True)),
            "background": head.background,
            "min_energy": head.min_energy,
            "validation": None
            if validation is None
            else {f: getattr(validation, f) for f in validation.__struct_fields__},
            "pushed_to": pushed_to,
        }
        print_json(found)
        return
    first, last = head.generations
    print_table(
        f"{out}: {head.encoder}, generation {first if first == last else f'{first} to {last}'}",
        ["label", "windows", "detected from"],
        [
            [name, str(count), f"{threshold:.2f}"]
            for name, count, threshold in zip(head.labels, counts, head.thresholds, strict=True)
        ],
    )
    if corrections:
        click.echo(f"  {corrections} {'sound was' if corrections == 1 else 'sounds were'} corrected on the page")
    if validation is None:
        click.echo(f"  not validated: give every label at least two {examples.unit}s")
    else:
        click.echo(
            f"  held out ({validation.split}): {validation.accuracy:.1%} of {validation.windows} windows right, "
            f"{validation.group_accuracy:.1%} of {validation.groups} {examples.unit}s, "
            f"average precision {validation.average_precision:.3f}"
        )
    if head.background is None:
        click.echo(
            f"  no label {BACKGROUND!r}: other sounds are recognised only by their energy, which misses many; record "
            f"other sounds of the device's place into a folder {BACKGROUND}/"
        )
    if pushed_to:
        click.echo(f"  pushed to {', '.join(pushed_to)}")
