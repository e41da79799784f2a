"""`ssc splitter train` and `show`, and functions that the other table commands share."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import click

from runtime_edge.base.files import read_bounded
from runtime_edge.click_options import ManyOptions, RenamedOption
from runtime_edge.errors import TableError, UsageError
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.codec import STREAMS
from runtime_edge.formats.encoder.privacy_info import forbidden_kinds
from runtime_edge.formats.records.actions import Encoding, ShipThresholds
from runtime_edge.formats.records.table import MAX_TABLE_BYTES, Limits, Reward, SplitterTable, StateAxis
from streamsplit_compile.bundle.bundle_writer import write_table
from streamsplit_compile.bundle.soundscape import soundscape
from streamsplit_compile.cli.options import (
    PathParam,
    bundle_argument,
    json_option,
    key_option,
    link_option,
    measured_profile,
    profile_option,
    read_key,
    together,
)
from streamsplit_compile.cli.printing import print_json, print_table
from streamsplit_compile.cost.radios import DEFAULT_LINK, radio_on
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.splitter.environment import MOST_AGREEMENT_LOST, Environment, environment_for
from streamsplit_compile.splitter.pricing import bundle_actions, hop_seconds, train_for_bundle
from streamsplit_compile.splitter.raw_streams import with_stream
from streamsplit_compile.splitter.table_training import TableOptions
from streamsplit_compile.splitter.trace_csv import known_families, recorded_traces
from streamsplit_compile.splitter.traces import FAMILIES, HELD_OUT, Traces, family_traces

_LISTENED_S = 20.0
"""Seconds of soundscape that a stream's bytes and agreement are measured on."""
_STATES = ("uncertainty", "cpu", "bandwidth_mbps", "rtt_ms", "temperature_c", "battery")

traces_option = click.option(
    "--traces",
    default=",".join(FAMILIES),
    show_default=True,
    help="Families of synthetic traces, or a CSV file or a directory of recorded ones.",
)
seed_option = click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the traces.")

_reward_options = together(
    click.option("--alpha", type=click.FloatRange(0), help="Weight of agreement [default: 10]."),
    click.option("--beta", type=click.FloatRange(0), help="Weight of latency [default: 5]."),
    click.option("--eta", type=click.FloatRange(0), help="Weight of energy [default: 3]."),
    click.option("--t-max-ms", type=click.FloatRange(0, min_open=True), help="Latency that costs beta [default: 200]."),
    click.option(
        "--e-budget-mj", type=click.FloatRange(0, min_open=True), help="Energy that costs eta [default: 100]."
    ),
    click.option("--rho", type=click.FloatRange(0), help="Value of windows the server can learn from [default: 0.2]."),
    click.option("--phi", type=click.FloatRange(0, 1), help="Weight of an exit's answer [default: 0.5]."),
)
"""Weights and scales of the reward; the defaults are those of `Reward`."""

_limit_options = together(
    click.option(
        "--max-mb-per-hour", type=click.FloatRange(0, min_open=True), help="Hard cap on bytes shipped, MB an hour."
    ),
    click.option(
        "--max-latency-ms",
        type=click.FloatRange(0, min_open=True),
        help="Hard cap on the 95th percentile of latency, ms.",
    ),
    click.option("--max-memory-mb", type=click.FloatRange(0, min_open=True), help="Hard cap on a prefix's memory, MB."),
    click.option("--min-cut", help="Privacy floor: no action before this cut."),
    click.option(
        "--max-word-recognition",
        type=click.FloatRange(0, 1),
        help="Privacy floor: no action that gives away more than this share of words (`ssc audit`).",
    ),
    click.option(
        "--max-agreement-lost",
        default=MOST_AGREEMENT_LOST,
        show_default=True,
        type=click.FloatRange(0, 2),
        help="How much less agreement a bottleneck's width may have than the plain activation at its cut.",
    ),
)
"""Limits that no action may exceed."""


_bins_option = click.option(
    "--bins",
    multiple=True,
    help="Edges of a state variable, such as cpu=0.3,0.6, instead of automatic ones; cpu= ignores the variable. "
    "Repeatable.",
)

_stream_options = together(
    click.option(
        "--audio-format",
        "--audio",
        cls=RenamedOption,
        earlier=["--audio"],
        default="pcm16",
        show_default=True,
        type=click.Choice(["pcm16", *STREAMS]),
        help="How devices ship the waveform (their --audio-format); streams are measured on a soundscape.",
    ),
    click.option(
        "--opus-kbps", default=16.0, show_default=True, type=click.FloatRange(6, 128), help="Bit rate of Opus, kbit/s."
    ),
)
_exploration_option = click.option(
    "--exploration",
    default=TableOptions.exploration,
    show_default=True,
    type=click.FloatRange(0, 0.2),
    help="Share of windows that devices ship at an earlier cut, so that early blocks learn.",
)


_ship_option = click.option(
    "--ship",
    help="Ship only windows whose entropy lies between two shares of ln C, such as 0.02,0.4 [default: all].",
)


_COMMON = ("target", "out", "profile_file", "link", "traces", "max_mb_per_hour", "min_cut", "key", "as_json")


@click.command(cls=ManyOptions, common=_COMMON)
@bundle_argument
@click.option("--target", required=True, help="A target the bundle was compiled for.")
@click.option("-o", "--out", type=PathParam(), required=True, help="Table file to write.")
@profile_option
@link_option
@traces_option
@_bins_option
@_reward_options
@_limit_options
@_stream_options
@_exploration_option
@_ship_option
@seed_option
@key_option
@json_option
def train(
    bundle: Path,
    target: str,
    out: Path,
    profile_file: Path | None,
    link: str,
    traces: str,
    bins: tuple[str, ...],
    max_mb_per_hour: float | None,
    max_latency_ms: float | None,
    max_memory_mb: float | None,
    min_cut: str | None,
    max_word_recognition: float | None,
    max_agreement_lost: float,
    exploration: float,
    ship: str | None,
    audio_format: Encoding,
    opus_kbps: float,
    seed: int,
    key: Path | None,
    as_json: bool,
    **weights: float | None,
) -> None:
    """Learn a table by Q-learning on the bundle's costs and on traces (docs/method.md, section 6).

    Example: ssc splitter train bundle/ --target rpi4 --traces lte,outages --max-mb-per-hour 40 -o table.json
    """
    opened = open_bundle(bundle)
    limits = Limits(
        mb_per_hour=max_mb_per_hour, latency_p95_ms=max_latency_ms, memory_mb=max_memory_mb, min_cut=min_cut
    )
    reward = Reward(**{name: value for name, value in weights.items() if value is not None})
    stream = audio_format, opus_kbps
    environment = bundle_environment(
        opened, target, reward, limits, profile_file, link, stream, max_agreement_lost, max_word_recognition
    )
    seen, held_out = traces_of(traces, seed)
    options = TableOptions(seed=seed, bins=_axes(bins), exploration=exploration, ship=_ship(ship))
    table = train_for_bundle(opened.manifest, opened.digest, environment, target, seen, held_out, options)
    write_table(out.parent, out.name, table.to_json(), read_key(key))
    print_json(table.metrics) if as_json else _describe(table, str(out))


@click.command()
@click.argument("table", type=PathParam())
@json_option
def show(table: Path, as_json: bool) -> None:
    """Show what a table chooses and how it did on held-out traces.

    Example: ssc splitter show bundle/tables/rpi4.json
    """
    read = read_table(table)
    if as_json:
        print_json({"target": read.target, "actions": read.actions, "shares": _shares(read), "metrics": read.metrics})
    else:
        _describe(read, str(table))


def bundle_environment(
    bundle: Bundle,
    target: str,
    reward: Reward,
    limits: Limits,
    profile_file: Path | None,
    link: str = DEFAULT_LINK,
    stream: tuple[Encoding, float] = ("pcm16", 0.0),
    agreement_lost: float = MOST_AGREEMENT_LOST,
    most_words: float | None = None,
) -> Environment:
    """The environment of a bundle on one of its targets, with a profile's times if one is given.

    `stream`: how the waveform is shipped, and Opus's rate in kbit/s. `most_words`: the largest share of words that an
    action may give away. Raises BundleError if an audit shows none, or if there was no audit.
    """
    actions = bundle_actions(bundle.manifest, target, measured_profile(profile_file))
    info, widths = bundle.manifest.info, bundle.manifest.widths
    forbidden = forbidden_kinds(info.privacy, most_words, [cut.name for cut in info.cuts], widths)
    actions = [action for action in actions if (action.cut, action.width) not in forbidden]
    if stream[0] in STREAMS:
        heard = soundscape(_LISTENED_S, bundle.manifest.info.front_end.sample_rate, seed=0)
        actions = with_stream(actions, bundle, *stream, heard)
    radio = radio_on(load_target(target), link)
    return environment_for(actions, radio, reward, limits, hop_seconds(bundle.manifest), agreement_lost)


def traces_of(text: str, seed: int) -> tuple[Traces, Traces]:
    """The traces that `--traces` asks for: those to train on, and held-out ones."""
    families = known_families(text)
    if families is not None:
        each = 640 // len(families)
        return family_traces(families, each, 480, seed), family_traces(families, each // 4, 480, seed + HELD_OUT)
    if not Path(text).exists():
        raise UsageError(f"--traces {text}: no such file, and the families are {', '.join(FAMILIES)}")
    return recorded_traces(Path(text), seed)


def read_table(path: Path) -> SplitterTable:
    """Read a table file. Raises TableError."""
    return SplitterTable.from_json(read_bounded(path, MAX_TABLE_BYTES, TableError), str(path))


def _ship(text: str | None) -> ShipThresholds | None:
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 1:
        raise UsageError(f"--ship {text}: expected two rising shares of ln C, as in 0.02,0.4")
    return ShipThresholds(min_entropy=low, max_entropy=high)


def _axes(texts: tuple[str, ...]) -> tuple[StateAxis, ...]:
    axes: list[StateAxis] = []
    for text in texts:
        name, _, numbers = text.partition("=")
        try:
            edges = tuple(float(number) for number in numbers.split(",") if number)
        except ValueError:
            edges = (1.0, 0.0)
        if name in [axis.name for axis in axes]:
            raise UsageError(f"--bins {text}: {name} was given before; give all its edges at once")
        if name not in _STATES or any(low >= high for low, high in itertools.pairwise(edges)):
            raise UsageError(f"--bins {text}: expected a name of {', '.join(_STATES)} and rising edges: cpu=0.3,0.6")
        axes.append(StateAxis(name=name, edges=edges))  # type: ignore[arg-type]
    return tuple(axes)


def _shares(table: SplitterTable) -> dict[str, float]:
    """Share of the table's states in which each action is chosen."""
    counts = Counter(table.actions[action] for action in table.policy)
    return {action: round(counts[action] / len(table.policy), 4) for action in table.actions}


def _describe(table: SplitterTable, where: str) -> None:
    shares = _shares(table)
    print_table(
        f"{where}: {table.encoder} on {table.target}",
        ["cut", "device ms", "device mJ", "bytes", "chosen in"],
        [
            [a.name, f"{a.device_ms:.1f}", f"{a.device_mj:.0f}", str(a.bytes), f"{shares[a.name]:.0%} of states"]
            for a in table.costs
        ],
    )
    for name, value in table.metrics.items():
        click.echo(f"  {name} {value:g}")
